//! Ids as they come.

/// Zeros are written so many ids ahead, at most.
const STEP: usize = 1 << 10;

/// A vector of ids behind which there is room to write some of them at once, and keep those that are wanted.
pub struct Output {
    /// The ids, and behind them anything.
    ids: Vec<u32>,
    len: usize,
}

impl Output {
    /// What comes is appended to `ids`.
    pub fn new(ids: Vec<u32>) -> Self {
        let len = ids.len();
        Output { ids, len }
    }

    pub fn into_ids(mut self) -> Vec<u32> {
        self.ids.truncate(self.len);
        self.ids
    }

    /// Room for `count` ids or more, of which `keep` makes some part of the output.
    #[inline]
    pub fn room(&mut self, count: usize) -> &mut [u32] {
        let needed = self.len + count;
        if self.ids.len() < needed {
            self.ids.reserve(needed - self.ids.len());
            self.ids.resize(self.ids.capacity().min(needed + STEP), 0);
        }
        &mut self.ids[self.len..]
    }

    /// Makes the first `count` ids of the room part of the output.
    #[inline]
    pub fn keep(&mut self, count: usize) {
        self.len = self.ids.len().min(self.len + count);
    }

    #[inline]
    pub fn push(&mut self, id: u32) {
        self.room(1)[0] = id;
        self.keep(1);
    }

    #[inline]
    pub fn extend_from_slice(&mut self, ids: &[u32]) {
        self.room(ids.len())[..ids.len()].copy_from_slice(ids);
        self.keep(ids.len());
    }

    /// The ids from the one of number `start` on.
    pub fn since(&self, start: usize) -> &[u32] {
        &self.ids[start..self.len]
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.len
    }
}

impl Extend<u32> for Output {
    fn extend<I: IntoIterator<Item = u32>>(&mut self, ids: I) {
        // What the room holds beyond the output goes, so that the vector can take them.
        self.ids.truncate(self.len);
        self.ids.extend(ids);
        self.len = self.ids.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_in_order() {
        let mut output = Output::new(vec![7]);
        let mut expected = vec![7];
        for i in 0..3000 {
            let room = output.room(5);
            room[..5].copy_from_slice(&[i, i + 1, 0, 9, 9]);
            output.keep(2);
            output.push(i);
            output.extend([i; 2]);
            output.extend_from_slice(&[3, i]);
            expected.extend([i, i + 1, i, i, i, 3, i]);
        }
        assert_eq!(output.since(1), &expected[1..]);
        assert_eq!(output.count(), expected.len());
        assert_eq!(output.into_ids(), expected);
    }
}
