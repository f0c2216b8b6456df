//! Sampling: which tokens remain possible, and the draw among them.

use crate::kernels::softmax;
use crate::search::options::Options;
use crate::search::select::{Flaw, argmax, top_k_of};

/// The sampling options of one request, applied in Transformers' order: temperature, then top_k,
/// top_p, min_p and typical_p, each renormalised over what the ones before it left.
#[derive(Clone, Copy, Debug)]
pub struct Warpers {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    typical_p: f32,
}

/// The tokens that are still possible, by ascending id, with their scores and probabilities.
struct Survivors {
    tokens: Vec<u32>,
    scores: Vec<f32>,
    probabilities: Vec<f32>,
}

impl Survivors {
    fn new(row: &[f32], lowest: f32) -> Self {
        let mut survivors = Survivors { tokens: vec![], scores: vec![], probabilities: vec![] };
        for (token, &score) in row.iter().enumerate() {
            if score >= lowest && score > f32::NEG_INFINITY {
                survivors.tokens.push(token as u32);
                survivors.scores.push(score);
            }
        }
        survivors.renormalise();
        survivors
    }

    fn renormalise(&mut self) {
        self.probabilities.clone_from(&self.scores);
        softmax(&mut self.probabilities, self.scores.len());
    }

    fn keep(&mut self, keep: &[bool]) {
        let mut flags = keep.iter();
        self.tokens.retain(|_| flags.next() == Some(&true));
        let mut flags = keep.iter();
        self.scores.retain(|_| flags.next() == Some(&true));
        if self.scores.len() < keep.len() {
            self.renormalise();
        }
    }

    /// The likeliest tokens whose probabilities together reach `mass`, at least one.
    fn top_p(&mut self, mass: f32) {
        let mass = f64::from(mass);
        // All tokens below this bound together weigh less than 1 - mass: they need no sorting.
        let bound = (1.0 - mass) / self.probabilities.len() as f64;
        let mut order: Vec<usize> =
            (0..self.tokens.len()).filter(|&i| f64::from(self.probabilities[i]) >= bound).collect();
        order.sort_unstable_by(|&a, &b| {
            self.probabilities[b].total_cmp(&self.probabilities[a]).then_with(|| a.cmp(&b))
        });
        let mut before = 0.0;
        let mut keep = vec![false; self.tokens.len()];
        for (rank, &index) in order.iter().enumerate() {
            if rank > 0 && before >= mass {
                break;
            }
            keep[index] = true;
            before += f64::from(self.probabilities[index]);
        }
        self.keep(&keep);
    }

    /// The tokens that are at least `share` times as likely as the likeliest.
    fn min_p(&mut self, share: f32) {
        let bound = share * self.probabilities.iter().copied().fold(0.0, f32::max);
        let keep: Vec<bool> = self.probabilities.iter().map(|&p| p >= bound).collect();
        self.keep(&keep);
    }

    /// The tokens whose surprise is nearest the expected one, until they weigh `mass` together.
    ///
    /// Meister et al., "Locally Typical Sampling", 2022.
    fn typical_p(&mut self, mass: f32) {
        let surprise: Vec<f64> = self.probabilities.iter().map(|&p| -f64::from(p).ln()).collect();
        let entropy: f64 = self
            .probabilities
            .iter()
            .zip(&surprise)
            .filter(|(p, _)| **p > 0.0)
            .map(|(&p, s)| f64::from(p) * s)
            .sum();
        let distance: Vec<f64> = surprise.iter().map(|s| (s - entropy).abs()).collect();
        let mut order: Vec<usize> = (0..self.tokens.len()).collect();
        order.sort_unstable_by(|&a, &b| distance[a].total_cmp(&distance[b]).then_with(|| a.cmp(&b)));
        let mut sum = 0.0;
        let last = order.iter().find(|&&index| {
            sum += f64::from(self.probabilities[index]);
            sum >= f64::from(mass)
        });
        if let Some(&last) = last {
            let keep: Vec<bool> = distance.iter().map(|&d| d <= distance[last]).collect();
            self.keep(&keep);
        }
    }

    /// The first token at which the probabilities so far exceed `uniform` of their sum.
    fn draw(&self, uniform: f64) -> Option<u32> {
        let total: f64 = self.probabilities.iter().map(|&p| f64::from(p)).sum();
        let target = uniform * total;
        let mut sum = 0.0;
        let mut last = None;
        for (&token, &p) in self.tokens.iter().zip(&self.probabilities) {
            sum += f64::from(p);
            if p > 0.0 {
                last = Some(token);
            }
            if sum > target {
                break;
            }
        }
        last
    }
}

impl Warpers {
    pub fn new(options: &Options) -> Self {
        let Options { temperature, top_k, top_p, min_p, typical_p, .. } = *options;
        Warpers { temperature, top_k, top_p, min_p, typical_p }
    }

    fn survivors(&self, row: &mut [f32]) -> Result<Survivors, Flaw> {
        let best = row[argmax(row)? as usize];
        if self.temperature != 1.0 {
            // Measured from the best, no score can overflow however cold it gets.
            row.iter_mut().for_each(|score| *score = (*score - best) / self.temperature);
        }
        let mut lowest = f32::NEG_INFINITY;
        if (1..row.len()).contains(&self.top_k) {
            lowest = top_k_of(row, self.top_k)?.last().map_or(lowest, |candidate| candidate.score);
        }
        let mut survivors = Survivors::new(row, lowest);
        if self.top_p < 1.0 {
            survivors.top_p(self.top_p);
        }
        if self.min_p > 0.0 {
            survivors.min_p(self.min_p);
        }
        if self.typical_p < 1.0 {
            survivors.typical_p(self.typical_p);
        }
        Ok(survivors)
    }

    /// Makes of scores those that a draw is by: divided by the temperature, and -∞ for what is excluded.
    pub fn warp(&self, row: &mut [f32]) -> Result<(), Flaw> {
        let scores = row.to_vec();
        let survivors = self.survivors(row)?;
        row.fill(f32::NEG_INFINITY);
        for token in survivors.tokens {
            row[token as usize] = scores[token as usize] / self.temperature;
        }
        Ok(())
    }

    /// Draws a token by its scores (which are changed), given a uniform number from [0, 1).
    pub fn draw(&self, row: &mut [f32], uniform: f64) -> Result<u32, Flaw> {
        self.survivors(row)?.draw(uniform).ok_or(Flaw::NothingLeft)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::random::Philox;

    /// Probabilities 0.4, 0.3, 0.2, 0.1, not in order of size.
    fn row() -> Vec<f32> {
        [0.3f32, 0.4, 0.1, 0.2].iter().map(|p| p.ln() + 5.0).collect()
    }

    fn tokens(options: Options) -> Vec<u32> {
        Warpers::new(&options).survivors(&mut row()).unwrap().tokens
    }

    #[test]
    fn each_option_keeps_what_its_definition_says() {
        let all = Options::default();
        assert_eq!(tokens(all.clone()), [0, 1, 2, 3]);
        assert_eq!(tokens(Options { top_k: 2, ..all.clone() }), [0, 1]);
        assert_eq!(tokens(Options { top_k: 9, ..all.clone() }), [0, 1, 2, 3]);
        assert_eq!(tokens(Options { top_p: 0.0, ..all.clone() }), [1]);
        assert_eq!(tokens(Options { top_p: 0.65, ..all.clone() }), [0, 1]);
        assert_eq!(tokens(Options { top_p: 0.75, ..all.clone() }), [0, 1, 3]);
        assert_eq!(tokens(Options { min_p: 0.45, ..all.clone() }), [0, 1, 3]);
        // Surprises 1.20, 0.92, 2.30, 1.61 around an entropy of 1.28.
        assert_eq!(tokens(Options { typical_p: 0.25, ..all.clone() }), [0]);
        assert_eq!(tokens(Options { typical_p: 0.45, ..all.clone() }), [0, 3]);
        // Colder by half: probabilities 16, 9, 4, 1 in thirtieths.
        assert_eq!(tokens(Options { temperature: 0.5, top_p: 0.85, ..all.clone() }), [0, 1, 3]);
        assert_eq!(tokens(Options { temperature: 0.5, top_p: 0.82, ..all.clone() }), [0, 1]);
        // What top_k leaves is renormalised before top_p.
        assert_eq!(tokens(Options { top_k: 2, top_p: 0.56, ..all.clone() }), [1]);
        let coldest = Warpers::new(&Options { temperature: 1e-38, ..all });
        assert_eq!(coldest.draw(&mut row(), 0.999), Ok(1));
    }

    #[test]
    fn ties_at_the_edge_of_top_k_all_stay() {
        let warpers = Warpers::new(&Options { top_k: 2, ..Options::default() });
        assert_eq!(warpers.survivors(&mut [1.0, 2.0, 1.0, 0.0]).unwrap().tokens, [0, 1, 2]);
    }

    #[test]
    fn warped_scores_are_colder_and_lack_what_is_excluded() {
        let warpers = Warpers::new(&Options { temperature: 0.5, top_k: 2, ..Options::default() });
        let mut scores = [1.0, -2.0, 0.0, f32::NEG_INFINITY];
        warpers.warp(&mut scores).unwrap();
        assert_eq!(scores, [2.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY]);
        assert_eq!(warpers.warp(&mut [f32::NAN]), Err(Flaw::NotANumber));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let warpers = Warpers::new(&Options::default());
        let count = 4000;
        let mut seen = [0u32; 4];
        for position in 0..count {
            let uniform = Philox::new(11).uniform(0, position);
            seen[warpers.draw(&mut row(), uniform).unwrap() as usize] += 1;
        }
        for (&times, p) in seen.iter().zip([0.3, 0.4, 0.1, 0.2]) {
            let expected = p * count as f64;
            // Four standard deviations of a binomial count.
            assert!((f64::from(times) - expected).abs() < 4.0 * (expected * (1.0 - p)).sqrt());
        }
    }

    #[test]
    fn forbidden_tokens_are_never_drawn() {
        let warpers = Warpers::new(&Options::default());
        let never = f32::NEG_INFINITY;
        for uniform in [0.0, 0.5, 1.0 - f64::EPSILON] {
            assert_eq!(warpers.draw(&mut [never, 1.0, never], uniform), Ok(1));
        }
        assert_eq!(warpers.draw(&mut [never; 3], 0.5), Err(Flaw::NothingLeft));
        assert_eq!(warpers.draw(&mut [0.0, f32::NAN], 0.5), Err(Flaw::NotANumber));
    }
}
