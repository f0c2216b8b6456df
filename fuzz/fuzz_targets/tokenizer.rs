//! Any bytes as a tokenizer.json: refused with an error, or a tokenizer that encodes and decodes.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use llmcore::bpe::load::Settings;
use llmcore::bpe::{Options, Tokenizer, json};

const TEXT: &str = "I'll naïvely  say<s>: 12345 times\r\n\tHello,\u{a0}Wörld! 你好 e\u{301}🦀 \u{0}";

fuzz_target!(|data: &[u8]| {
    let path = Path::new("fuzz");
    let Ok(parts) = json::from_slice(path, data) else { return };
    let Ok(tokenizer) = Tokenizer::with_settings(path, parts, &Settings::default()) else { return };
    let options = Options { offsets: true, ..Options::default() };
    if let Ok(encoding) = tokenizer.encode(TEXT, &options) {
        assert_eq!(encoding.offsets.map(|offsets| offsets.len()), Some(encoding.ids.len()));
        tokenizer.decode(&encoding.ids, true);
    }
    tokenizer.decode(&[0, 1, 255, u32::MAX], false);
});
