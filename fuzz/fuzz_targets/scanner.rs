//! Any text and any pattern with a scanner: the pieces are those of the regular expression.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmcore::bpe::scan::{PATTERNS, Scanner};

thread_local! {
    static REGEXES: Vec<(fancy_regex::Regex, Scanner, bool)> = PATTERNS
        .iter()
        .map(|&(pattern, scanner)| {
            let regex = fancy_regex::Regex::new(pattern).expect("a pattern of the scanner");
            (regex, scanner, pattern.starts_with("(?:'[sS]"))
        })
        .collect();
}

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let text: &str = &String::from_utf8_lossy(rest);
    REGEXES.with(|regexes| {
        let (regex, scanner, spelt_out) = &regexes[usize::from(*first) % regexes.len()];
        // The patterns that spell the contractions out leave out the long s, which the scanner takes.
        if *spelt_out && text.contains('ſ') {
            return;
        }
        let mut expected = regex.find_iter(text);
        scanner
            .each_piece(text, &mut |piece| {
                let found = expected.next().map(|found| found.expect("a short text").range());
                assert_eq!(Some(piece), found, "{text:?}");
                Ok::<(), ()>(())
            })
            .expect("no call fails");
        assert!(expected.next().is_none(), "{text:?}");
    });
});
