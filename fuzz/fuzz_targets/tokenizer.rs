//! Any bytes as a tokenizer.json: refused with an error, or a tokenizer that encodes, decodes, and cuts texts where
//! that changes nothing.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use llmcore::bpe::load::Settings;
use llmcore::bpe::seams::Seams;
use llmcore::bpe::{Allowed, Options, Source, Tokenizer, json};

const TEXT: &str = "I'll naïvely  say<s>: 12345 times\r\n\tHello,\u{a0}Wörld! 你好 e\u{301}🦀 \u{0}";

fuzz_target!(|data: &[u8]| {
    let path = Path::new("fuzz");
    let Ok(parts) = json::from_slice(path, data) else { return };
    let Ok(tokenizer) = Tokenizer::with_settings(path, parts, &Settings::default()) else { return };
    let options = Options { offsets: true, ..Options::default() };
    if let Ok(encoding) = tokenizer.encode(TEXT, &options) {
        assert_eq!(encoding.offsets.map(|offsets| offsets.len()), Some(encoding.ids.len()));
        tokenizer.decode(&encoding.ids, true);
        seams(&tokenizer);
    }
    tokenizer.decode(&[0, 1, 255, u32::MAX], false);
});

/// Either side of a seam has the ids that it has in the whole.
fn seams(tokenizer: &Tokenizer) {
    let Some(seams) = Seams::of(tokenizer) else { return };
    let ids = |text| {
        let mut ids = Vec::new();
        tokenizer.encode_onto(&mut ids, Source::Text(text), Allowed::All).ok().map(|()| ids)
    };
    let whole = ids(TEXT);
    for read in 0..=TEXT.len() {
        if let Some(seam) = seams.last(&TEXT.as_bytes()[..read]) {
            let (left, right) = TEXT.split_at(seam);
            assert_eq!(ids(left).zip(ids(right)).map(|(left, right)| [left, right].concat()), whole);
        }
    }
    assert!(tokenizer.truncate(TEXT, 5, Allowed::All).is_ok_and(|text| TEXT.starts_with(text)));
}
