//! A toy `Step` whose logits are a hash of the sequence, and tests of the searches over it: what is
//! best is known by enumeration, and every sequence must be given back.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::kernels::log_softmax;
use crate::random::Philox;
use crate::search::hypothesis::{FinishReason, Output, StoppingCriterion};
use crate::search::options::{EarlyStopping, Options};
use crate::search::session::{Request, Session};
use crate::search::strategy::Piece;
use crate::search::text::tests::Table;
use crate::step::{SeqId, Step, Wanted, Work};

struct Toy {
    vocab: usize,
    sequences: BTreeMap<SeqId, Vec<u32>>,
    started: u32,
    /// Tokens of each pass.
    passes: Vec<usize>,
    /// A sequence after which the logits are NaN.
    poison: Option<Vec<u32>>,
}

impl Toy {
    fn new(vocab: usize) -> Self {
        Toy { vocab, sequences: BTreeMap::new(), started: 0, passes: vec![], poison: None }
    }

    fn logits(&self, ids: &[u32]) -> Vec<f32> {
        if self.poison.as_deref() == Some(ids) {
            return vec![f32::NAN; self.vocab];
        }
        let hash = ids.iter().fold(17u64, |hash, &id| (hash ^ u64::from(id)).wrapping_mul(0x100_0000_01b3));
        (0..self.vocab as u64).map(|token| Philox::new(hash).uniform(0, token) as f32 * 6.0).collect()
    }
}

impl Step for Toy {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn max_positions(&self) -> usize {
        2000
    }

    fn start(&mut self) -> SeqId {
        self.started += 1;
        self.sequences.insert(SeqId(self.started), vec![]);
        SeqId(self.started)
    }

    fn len(&self, seq: SeqId) -> usize {
        self.sequences[&seq].len()
    }

    fn fork(&mut self, seq: SeqId) -> SeqId {
        let new = self.start();
        let content = self.sequences[&seq].clone();
        self.sequences.insert(new, content);
        new
    }

    fn truncate(&mut self, seq: SeqId, len: usize) {
        self.sequences.get_mut(&seq).unwrap().truncate(len);
    }

    fn release(&mut self, seq: SeqId) {
        self.sequences.remove(&seq).expect("released once");
    }

    fn forward(&mut self, work: &[Work<'_>], logits: &mut Vec<f32>) -> Result<()> {
        logits.clear();
        let mut seen: Vec<SeqId> = work.iter().map(|work| work.seq).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), work.len(), "each sequence at most once");
        for work in work {
            assert!(!work.tokens.is_empty());
            let ids = self.sequences.get_mut(&work.seq).expect("a live sequence");
            ids.extend(work.tokens);
            if work.wanted == Wanted::Last {
                let ids = ids.clone();
                logits.extend(self.logits(&ids));
            }
        }
        self.passes.push(work.iter().map(|work| work.tokens.len()).sum());
        Ok(())
    }
}

fn request(prompt: &[u32], options: Options) -> Request {
    Request { prompt: prompt.to_vec(), options, decoder: None, processors: vec![], criteria: vec![] }
}

/// Runs requests together to the end, and checks that all sequences have been given back.
fn run_requests(toy: &mut Toy, requests: Vec<Request>) -> Result<(Vec<Vec<Output>>, Vec<Piece>)> {
    let mut session = Session::new();
    let ids = requests.into_iter().map(|request| session.add(request, toy)).collect::<Result<Vec<_>>>()?;
    let mut pieces = vec![];
    while !session.is_finished() {
        let outcome = session.step(toy);
        if outcome.is_err() {
            assert!(toy.sequences.is_empty(), "an error gives all sequences back");
        }
        pieces.extend(outcome?);
    }
    assert!(toy.sequences.is_empty(), "every sequence is given back");
    Ok((ids.into_iter().map(|id| session.take(id).unwrap()).collect(), pieces))
}

fn run(prompt: &[u32], options: Options) -> Vec<Output> {
    let mut toy = Toy::new(5);
    run_requests(&mut toy, vec![request(prompt, options)]).unwrap().0.remove(0)
}

fn ids(outputs: &[Output]) -> Vec<Vec<u32>> {
    outputs.iter().map(|output| output.ids.clone()).collect()
}

/// The log-probability of a continuation, added in the order of its tokens.
fn log_probability(toy: &Toy, prompt: &[u32], continuation: &[u32]) -> f32 {
    let mut ids = prompt.to_vec();
    let mut sum = 0.0;
    for &token in continuation {
        let logits = toy.logits(&ids);
        let mut scores = vec![0.0; logits.len()];
        log_softmax(&logits, logits.len(), &mut scores);
        sum += scores[token as usize];
        ids.push(token);
    }
    sum
}

/// Every continuation that ends with one of `eos` or after `length` tokens.
fn continuations(vocab: u32, length: usize, eos: &[u32]) -> Vec<Vec<u32>> {
    let mut all = vec![];
    let mut open = vec![vec![]];
    for _ in 0..length {
        let longer = open
            .iter()
            .flat_map(|ids: &Vec<u32>| (0..vocab).map(move |token| [ids.as_slice(), &[token]].concat()));
        let (ended, going): (Vec<_>, Vec<_>) =
            longer.collect::<Vec<_>>().into_iter().partition(|ids| eos.contains(ids.last().unwrap()));
        all.extend(ended);
        open = going;
    }
    all.extend(open);
    all
}

#[test]
fn greedy_takes_the_best_token_each_time() {
    let toy = Toy::new(5);
    let outputs = run(&[1, 2], Options { max_new_tokens: Some(9), ..Options::default() });
    let mut expected = vec![1, 2];
    for _ in 0..9 {
        let logits = toy.logits(&expected);
        let best = (0..5).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        expected.push(best as u32);
    }
    assert_eq!(outputs[0].ids, expected[2..]);
    assert_eq!(outputs[0].finish_reason, FinishReason::Length);
}

#[test]
fn a_wide_beam_finds_the_best_of_all_continuations() {
    let toy = Toy::new(5);
    for (eos, length_penalty) in [(vec![], 1.0), (vec![3], 1.0), (vec![0, 3], 0.0), (vec![3], 2.0)] {
        let options = Options {
            max_new_tokens: Some(4),
            num_beams: 625,
            num_return_sequences: 40,
            early_stopping: EarlyStopping::Never,
            eos_token_id: eos.clone(),
            length_penalty,
            ..Options::default()
        };
        let outputs = run(&[4], options);
        let mut all: Vec<(f32, Vec<u32>)> = continuations(5, 4, &eos)
            .into_iter()
            .map(|ids| {
                let norm = (ids.len() as f64).powf(length_penalty) as f32;
                (log_probability(&toy, &[4], &ids) / norm, ids)
            })
            .collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let expected: Vec<_> = all[..40].iter().map(|(_, ids)| ids.clone()).collect();
        assert_eq!(ids(&outputs), expected);
        for (output, (score, _)) in outputs.iter().zip(&all) {
            assert_eq!(output.score, Some(*score));
        }
    }
}

#[test]
fn groups_that_do_not_mind_each_other_are_equal_searches() {
    let plain =
        Options { num_beams: 2, num_return_sequences: 2, max_new_tokens: Some(6), ..Options::default() };
    let alone = run(&[2, 2], plain.clone());
    let groups = Options { num_beams: 6, num_beam_groups: 3, num_return_sequences: 6, ..plain.clone() };
    let grouped = run(&[2, 2], groups.clone());
    for pair in 0..2 {
        for output in &grouped[3 * pair..3 * pair + 3] {
            assert_eq!((&output.ids, output.score), (&alone[pair].ids, alone[pair].score));
        }
    }
    // With a penalty above all differences of scores, no two groups begin with the same token.
    let apart = run(&[2, 2], Options { diversity_penalty: 1e3, ..groups });
    let mut firsts: Vec<u32> = apart.iter().map(|output| output.ids[0]).collect();
    firsts.sort_unstable();
    firsts.dedup();
    assert!(firsts.len() >= 3, "{firsts:?}");
}

#[test]
fn ends_are_honoured_by_every_search() {
    for num_beams in [1, 3] {
        let options =
            Options { num_beams, max_length: Some(10), eos_token_id: vec![0, 1], ..Options::default() };
        let outputs = run(&[2, 3], options.clone());
        let (last, before) = outputs[0].ids.split_last().unwrap();
        assert!(*last < 2 && before.iter().all(|&token| token > 1));
        assert_eq!(outputs[0].finish_reason, FinishReason::Stop);
        let outputs = run(&[2, 3], Options { min_new_tokens: 8, ..options.clone() });
        assert!(outputs[0].ids.len() == 8 && outputs[0].ids.iter().all(|&token| token > 1));
        assert_eq!(outputs[0].finish_reason, FinishReason::Length);
    }
}

#[test]
fn samples_depend_on_seed_sample_and_position_alone() {
    let options = |seed, count| Options {
        do_sample: true,
        seed,
        num_return_sequences: count,
        max_new_tokens: Some(12),
        ..Options::default()
    };
    let four = run(&[1, 2, 3], options(5, 4));
    assert_eq!(ids(&run(&[1, 2, 3], options(5, 2))), ids(&four)[..2]);
    assert_ne!(ids(&run(&[1, 2, 3], options(6, 4))), ids(&four));
    assert_ne!(four[0].ids, four[1].ids);
    // The same position has the same draw, however much of what is before it was given.
    let longer = [&[1, 2, 3], &four[0].ids[..5]].concat();
    let rest = run(&longer, Options { max_new_tokens: Some(7), ..options(5, 1) });
    assert_eq!(rest[0].ids, four[0].ids[5..]);
}

#[test]
fn requests_run_together_as_if_alone() {
    let list: Vec<(Vec<u32>, Options)> = (0..40u32)
        .map(|i| {
            let prompt = (0..1 + (i * 37) % 300).map(|j| (i + j) % 5).collect();
            let mut options =
                Options { max_new_tokens: Some(3 + i as usize % 5), seed: 9, ..Options::default() };
            match i % 3 {
                0 => options.do_sample = true,
                1 => (options.num_beams, options.num_beam_groups) = (4, 2),
                _ => options.frequency_penalty = 0.5,
            }
            (prompt, options)
        })
        .collect();
    let requests = || list.iter().map(|(prompt, options)| request(prompt, options.clone())).collect();
    let mut toy = Toy::new(5);
    let (together, _) = run_requests(&mut toy, requests()).unwrap();
    for ((prompt, options), outputs) in list.iter().zip(&together) {
        assert_eq!(ids(&run(prompt, options.clone())), ids(outputs));
    }
    assert!(toy.passes.iter().all(|&rows| rows <= 512), "{:?}", toy.passes);
}

#[test]
fn requests_may_come_while_others_run() {
    let options = |num_beams| Options { num_beams, max_new_tokens: Some(9), ..Options::default() };
    let mut toy = Toy::new(5);
    let mut session = Session::new();
    let first = session.add(request(&[1, 2], options(3)), &toy).unwrap();
    for _ in 0..4 {
        session.step(&mut toy).unwrap();
    }
    let second = session.add(request(&[3; 600], options(1)), &toy).unwrap();
    while !session.is_finished() {
        session.step(&mut toy).unwrap();
    }
    assert_eq!(ids(&session.take(first).unwrap()), ids(&run(&[1, 2], options(3))));
    assert_eq!(ids(&session.take(second).unwrap()), ids(&run(&[3; 600], options(1))));
}

#[test]
fn long_prompts_are_filled_in_bounded_passes() {
    let prompt: Vec<u32> = (0..1300).map(|i| i % 5).collect();
    let mut toy = Toy::new(5);
    let options = Options { max_new_tokens: Some(2), ..Options::default() };
    run_requests(&mut toy, vec![request(&prompt, options)]).unwrap();
    assert_eq!(toy.passes, [512, 512, 276, 1]);
    let options = Options::default();
    let outputs = run_requests(&mut toy, vec![request(&prompt, options)]).unwrap().0;
    assert_eq!(outputs[0][0].ids.len(), 700);
    assert_eq!(outputs[0][0].finish_reason, FinishReason::Length);
}

#[test]
fn pieces_add_up_to_the_outputs() {
    for num_beams in [1, 3] {
        let options = Options {
            num_beams,
            do_sample: num_beams == 1,
            num_return_sequences: 3,
            max_new_tokens: Some(10),
            stop_strings: vec!["dee".into(), "bc".into()],
            eos_token_id: vec![4],
            logprobs: Some(2),
            ..Options::default()
        };
        let decoder = || Box::new(Table(["a", "b", "c", "de", "e"].into()));
        let requests = vec![
            Request { decoder: Some(decoder()), ..request(&[0], options.clone()) },
            request(&[1], Options { stop_strings: vec![], ..options }),
        ];
        let mut toy = Toy::new(5);
        let (outputs, pieces) = run_requests(&mut toy, requests).unwrap();
        for (r, outputs) in outputs.iter().enumerate() {
            for (index, output) in outputs.iter().enumerate() {
                let mine: Vec<_> = pieces.iter().filter(|p| p.request.0 == r && p.index == index).collect();
                assert_eq!(mine.iter().flat_map(|p| p.ids.clone()).collect::<Vec<_>>(), output.ids);
                let text: String = mine.iter().map(|p| p.text.as_str()).collect();
                assert_eq!(text, output.text.clone().unwrap_or_default());
                assert!(!text.contains("bc") && !text.contains("dee"));
                let logprobs: Vec<_> = mine.iter().flat_map(|p| p.logprobs.clone()).collect();
                assert_eq!(logprobs, output.logprobs);
                let total: f32 = logprobs.iter().map(|entry| entry.logprob).sum();
                let prompt = [r as u32];
                assert!((total - log_probability(&toy, &prompt, &output.ids)).abs() < 1e-4);
                for entry in &logprobs {
                    assert!(entry.top.len() == 2 && entry.top[0].1 >= entry.top[1].1);
                    assert!(entry.logprob <= entry.top[0].1);
                }
                assert_eq!(mine.last().unwrap().finish_reason, Some(output.finish_reason));
                assert!(mine.iter().rev().skip(1).all(|p| p.finish_reason.is_none()));
            }
        }
    }
}

#[test]
fn errors_and_cancelling_give_everything_back() {
    let options = Options { max_new_tokens: Some(20), num_beams: 3, ..Options::default() };
    let mut toy = Toy::new(5);
    toy.poison = Some([1, 2].into());
    let failing = Options { max_new_tokens: Some(4), ..Options::default() };
    let requests = vec![request(&[0], options.clone()), request(&[1, 2], failing)];
    let error = run_requests(&mut toy, requests).unwrap_err().to_string();
    assert!(error.contains("position 2") && error.contains("NaN"), "{error}");

    let mut session = Session::new();
    let kept = session.add(request(&[3], options.clone()), &toy).unwrap();
    let dropped = session.add(request(&[4], options), &toy).unwrap();
    session.step(&mut toy).unwrap();
    session.cancel(dropped, &mut toy);
    assert_eq!(toy.sequences.len(), 3);
    session.step(&mut toy).unwrap();
    session.close(&mut toy);
    assert!(toy.sequences.is_empty() && session.is_finished());
    assert!(session.take(kept).is_none());
}

#[test]
fn criteria_end_sequences() {
    struct After(usize);
    impl StoppingCriterion for After {
        fn stop(&self, ids: &[u32]) -> Result<bool> {
            Ok(ids.len() >= self.0)
        }
    }
    struct Fails;
    impl StoppingCriterion for Fails {
        fn stop(&self, _: &[u32]) -> Result<bool> {
            Err(Error::Interrupted)
        }
    }
    for num_beams in [1, 2] {
        let options = Options { num_beams, max_new_tokens: Some(9), ..Options::default() };
        let with = |criterion: Arc<dyn StoppingCriterion>| Request {
            criteria: vec![criterion],
            ..request(&[1, 1], options.clone())
        };
        let outputs = run_requests(&mut Toy::new(5), vec![with(Arc::new(After(5)))]).unwrap().0;
        assert_eq!(outputs[0][0].ids.len(), 3);
        assert_eq!(outputs[0][0].finish_reason, FinishReason::Stop);
        assert!(run_requests(&mut Toy::new(5), vec![with(Arc::new(Fails))]).is_err());
    }
}

#[test]
fn options_out_of_range_are_named() {
    let bad: [(&str, &[u32], Options); 13] = [
        ("prompt", &[], Options::default()),
        ("prompt", &[5], Options::default()),
        ("prompt", &[0; 2000], Options::default()),
        (
            "num_return_sequences",
            &[0],
            Options { num_return_sequences: 3, num_beams: 2, ..Options::default() },
        ),
        ("num_beams", &[0], Options { num_beams: 0, ..Options::default() }),
        ("num_beams", &[0], Options { num_beams: 2, do_sample: true, ..Options::default() }),
        ("num_beam_groups", &[0], Options { num_beams: 4, num_beam_groups: 3, ..Options::default() }),
        ("temperature", &[0], Options { temperature: 0.0, ..Options::default() }),
        ("top_p", &[0], Options { top_p: f32::NAN, ..Options::default() }),
        ("max_length", &[0, 1], Options { max_length: Some(2), ..Options::default() }),
        (
            "min_new_tokens",
            &[0],
            Options { max_new_tokens: Some(2), min_new_tokens: 3, ..Options::default() },
        ),
        ("suppress_tokens", &[0], Options { suppress_tokens: vec![5], ..Options::default() }),
        ("stop_strings", &[0], Options { stop_strings: vec!["x".into()], ..Options::default() }),
    ];
    for (name, prompt, options) in bad {
        let error = run_requests(&mut Toy::new(5), vec![request(prompt, options)]).unwrap_err();
        assert!(matches!(&error, Error::Argument { name: found, .. } if found == name), "{name}: {error}");
    }
    // All tokens but those of a long bad word are suppressed, then that one is.
    let options = Options {
        suppress_tokens: vec![0, 1, 2, 3],
        bad_words_ids: vec![vec![4, 4]],
        max_new_tokens: Some(4),
        ..Options::default()
    };
    for num_beams in [1, 2] {
        let options = Options { num_beams, ..options.clone() };
        let error = run_requests(&mut Toy::new(5), vec![request(&[0], options)]).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
    }
}
