//! The text of a growing sequence, and the texts that end it.

use std::sync::Arc;

/// Turns tokens into text as they come.
pub trait TextDecoder: Send {
    /// The text that became certain with this token; never half a character.
    fn push(&mut self, token: u32) -> String;

    /// What was held back, with replacement characters for what never became one.
    fn finish(&mut self) -> String;

    /// A decoder in the same state.
    fn fork(&self) -> Box<dyn TextDecoder>;
}

/// The text of one sequence. What may turn out to be the start of a stop string is held back, so
/// that whatever has been released stays.
pub struct Text {
    decoder: Box<dyn TextDecoder>,
    stops: Arc<[String]>,
    released: String,
    held: String,
    stopped: bool,
}

impl Text {
    pub fn new(decoder: Box<dyn TextDecoder>, stops: Arc<[String]>) -> Self {
        Text { decoder, stops, released: String::new(), held: String::new(), stopped: false }
    }

    pub fn fork(&self) -> Self {
        Text {
            decoder: self.decoder.fork(),
            stops: self.stops.clone(),
            released: self.released.clone(),
            held: self.held.clone(),
            stopped: self.stopped,
        }
    }

    /// The text so far, without what is held back.
    pub fn released(&self) -> &str {
        &self.released
    }

    /// Adds a token; true once a stop string has occurred.
    pub fn push(&mut self, token: u32) -> bool {
        let piece = self.decoder.push(token);
        self.add(&piece);
        self.stopped
    }

    /// Releases the rest: after this the text is whole.
    pub fn finish(&mut self) {
        if self.stopped {
            return;
        }
        let piece = self.decoder.finish();
        self.add(&piece);
        if !self.stopped {
            self.released.push_str(&self.held);
            self.held.clear();
        }
    }

    fn add(&mut self, piece: &str) {
        if self.stopped {
            return;
        }
        self.held.push_str(piece);
        if let Some(start) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.released.push_str(&self.held[..start]);
            self.held.clear();
            self.stopped = true;
            return;
        }
        let keep = self.possible_start();
        self.released.push_str(&self.held[..keep]);
        self.held.drain(..keep);
    }

    /// Where the longest suffix of `held` begins that is a prefix of a stop string.
    fn possible_start(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest.saturating_sub(1));
        (earliest..self.held.len())
            .filter(|&start| self.held.is_char_boundary(start))
            .find(|&start| self.stops.iter().any(|stop| stop.starts_with(&self.held[start..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Token n is the n-th of some given texts.
    pub struct Table(pub Arc<[&'static str]>);

    impl TextDecoder for Table {
        fn push(&mut self, token: u32) -> String {
            self.0.get(token as usize).copied().unwrap_or("").to_owned()
        }

        fn finish(&mut self) -> String {
            String::new()
        }

        fn fork(&self) -> Box<dyn TextDecoder> {
            Box::new(Table(self.0.clone()))
        }
    }

    fn text(pieces: &[&'static str], stops: &[&str]) -> Text {
        let stops = stops.iter().map(|&stop| stop.to_owned()).collect();
        Text::new(Box::new(Table(pieces.into())), stops)
    }

    #[test]
    fn a_possible_stop_is_held_back_until_it_is_one_or_is_not() {
        let mut text = text(&["ab", "<", "e", "nd", "x", "<en", "d>tail"], &["<end>"]);
        let mut seen = vec![];
        for token in 0..7 {
            let stopped = text.push(token);
            seen.push((text.released().to_owned(), stopped));
        }
        let expected = [
            ("ab", false),
            ("ab", false),
            ("ab", false),
            ("ab", false),
            ("ab<endx", false),
            ("ab<endx", false),
            ("ab<endx", true),
        ];
        assert_eq!(seen, expected.map(|(released, stopped)| (released.to_owned(), stopped)));
        text.finish();
        assert_eq!(text.released(), "ab<endx");
    }

    #[test]
    fn the_earliest_stop_wins_and_the_rest_is_released_at_the_end() {
        let mut first = text(&["one two three"], &["three", "two"]);
        assert!(first.push(0));
        assert_eq!(first.released(), "one ");

        let mut never = text(&["é", "né"], &["née"]);
        assert!(!never.push(0));
        assert!(!never.push(1));
        assert_eq!(never.released(), "é");
        let mut fork = never.fork();
        never.finish();
        assert_eq!(never.released(), "éné");
        assert_eq!(fork.released(), "é");
        fork.finish();
        assert_eq!(fork.released(), never.released());
    }

    #[test]
    fn overlapping_starts_are_all_considered() {
        let mut text = text(&["a", "a", "b"], &["aab"]);
        assert!(!text.push(0));
        assert!(!text.push(0));
        assert!(!text.push(0));
        assert_eq!(text.released(), "a");
        assert!(text.push(2));
        assert_eq!(text.released(), "a");
    }
}
