//! What compiling collects on its way down a tree: paths, parameters, sites, and layers of the cache.

use std::collections::HashSet;
use std::fmt::Display;

use crate::blocks::spec::{AdaptersSpec, RopeSpec, Spec};
use crate::cache::KvShape;
use crate::error::{Error, Result};
use crate::parameters::{Layout, MatrixId, TableId, VectorId};
use crate::sites::{SiteId, Sites};

/// No width, count of heads or vocabulary is larger: products of two sizes stay far from overflow.
pub const LARGEST_SIZE: usize = 1 << 24;

/// No stack of layers is deeper.
pub const MOST_LAYERS: usize = 1 << 12;

/// Distinct rotary positions of a tree; one table of turns a pass serves all layers that share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeId(pub usize);

/// A place where activations are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutId(pub u32);

#[derive(Default)]
pub struct Builder {
    pub layout: Layout,
    pub sites: Sites,
    pub kv: Vec<KvShape>,
    pub ropes: Vec<RopeSpec>,
    /// What is to be adapted.
    pub adapters: Option<AdaptersSpec>,
    dropouts: u32,
    scope: Vec<String>,
    taken: HashSet<String>,
}

impl Builder {
    /// For a tree with adapters.
    pub fn with_adapters(adapters: Option<AdaptersSpec>) -> Self {
        Builder { adapters, ..Builder::default() }
    }

    /// Compiles what `inside` compiles under the block's name; a name that the scope has already gets `_2`, `_3`, …
    pub fn within<T>(&mut self, spec: &Spec, inside: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.named(spec.name().unwrap_or(spec.default_name()), inside)
    }

    /// As [`Builder::within`], with the name given; an empty name adds no part to the path.
    pub fn named<T>(&mut self, name: &str, inside: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if name.is_empty() {
            return inside(self);
        }
        let mut part = name.to_owned();
        let mut copies = 1;
        while !self.taken.insert(self.path(&part)) {
            copies += 1;
            part = format!("{name}_{copies}");
        }
        self.scope.push(part);
        let result = inside(self);
        self.scope.pop();
        result
    }

    /// The path of `leaf` in the present scope; the scope's own for an empty one.
    pub fn path(&self, leaf: &str) -> String {
        let mut path = self.scope.join(".");
        if !leaf.is_empty() {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(leaf);
        }
        path
    }

    pub fn site(&mut self, leaf: &str) -> SiteId {
        self.sites.add(self.path(leaf))
    }

    /// The next place where activations are dropped.
    pub fn dropout(&mut self) -> DropoutId {
        self.dropouts += 1;
        DropoutId(self.dropouts - 1)
    }

    pub fn vector(&mut self, leaf: &str, len: usize) -> VectorId {
        self.layout.vector(&[(self.path(leaf), len)])
    }

    /// Vectors of several outputs, each a leaf and a length, one after the other.
    pub fn vectors(&mut self, outputs: &[(String, usize)]) -> VectorId {
        let parts = self.paths(outputs);
        self.layout.vector(&parts)
    }

    pub fn table(&mut self, leaf: &str, rows: usize, width: usize) -> TableId {
        self.layout.table(&self.path(leaf), rows, width)
    }

    /// One matrix of several outputs, each a leaf and a size, over the same `inputs`.
    pub fn matrix(&mut self, outputs: &[(String, usize)], inputs: usize) -> MatrixId {
        let parts = self.paths(outputs);
        self.layout.matrix(&parts, inputs)
    }

    /// As [`Builder::matrix`], of parameters that no checkpoint has.
    pub fn added_matrix(&mut self, outputs: &[(String, usize)], inputs: usize) -> MatrixId {
        let parts = self.paths(outputs);
        self.layout.added_matrix(&parts, inputs)
    }

    fn paths(&self, leaves: &[(String, usize)]) -> Vec<(String, usize)> {
        leaves.iter().map(|(leaf, size)| (self.path(leaf), *size)).collect()
    }

    pub fn rope(&mut self, rope: &RopeSpec) -> RopeId {
        let known = self.ropes.iter().position(|r| r == rope);
        RopeId(known.unwrap_or_else(|| {
            self.ropes.push(rope.clone());
            self.ropes.len() - 1
        }))
    }

    /// Checks a size of the block in scope.
    pub fn size(&self, field: &str, value: usize) -> Result<usize> {
        if value == 0 || value > LARGEST_SIZE {
            return Err(self.wrong(field, value, format!("a size from 1 to {LARGEST_SIZE}")));
        }
        Ok(value)
    }

    pub fn wrong(&self, field: &str, found: impl Display, expected: impl Display) -> Error {
        Error::argument(self.path(field), found, expected)
    }
}
