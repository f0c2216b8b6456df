//! Parameters to infer with: every matrix in panels, in the order of execution.

use std::collections::HashMap;

use super::load::Loader;
use super::{Layout, MatrixId, Storage, TableId, VectorId, View};
use crate::error::{Error, Result};
use crate::formats::TensorSource;
use crate::kernels::Factor;
use crate::weights::{Arena, Element};

pub struct Packed {
    pub(super) layout: Layout,
    vectors: Vec<Vec<f32>>,
    tables: Vec<Vec<f32>>,
    matrices: Vec<Factor<'static>>,
    /// Floats of the arena that each matrix takes.
    floats: Vec<usize>,
}

impl Packed {
    pub fn load(
        layout: Layout,
        source: &dyn TensorSource,
        views: &HashMap<String, View>,
        storage: Storage,
    ) -> Result<Self> {
        let loader = Loader { layout: &layout, source, views, storage };
        loader.check()?;
        let vectors = layout.vectors.iter().map(|parts| loader.vector(parts)).collect::<Result<_>>()?;
        let tables = layout.tables.iter().map(|&id| loader.table(id)).collect::<Result<_>>()?;
        let too_large = || Error::Memory { what: "the weights".into(), bytes: usize::MAX };
        let mut floats = Vec::new();
        let mut all = 0usize;
        for parts in &layout.matrices {
            let some = loader.floats(parts)?.ok_or_else(too_large)?;
            floats.push(some);
            all = all.checked_add(some).ok_or_else(too_large)?;
        }
        let arena = Arena::with_capacity(all)?;
        let matrices =
            layout.matrices.iter().map(|parts| loader.matrix(parts, &arena)).collect::<Result<_>>()?;
        Ok(Packed { layout, vectors, tables, matrices, floats })
    }

    pub fn bytes(&self) -> usize {
        let plain: usize = self.vectors.iter().chain(&self.tables).map(Vec::len).sum();
        (plain + self.floats.iter().sum::<usize>()) * size_of::<f32>()
    }

    pub fn matrix_bytes(&self, id: MatrixId) -> usize {
        self.floats[id.0 as usize] * size_of::<f32>()
    }

    /// Whether every matrix is kept as float32.
    pub fn is_float32(&self) -> bool {
        self.matrices.iter().all(|matrix| match matrix {
            Factor::Matrix(_) => true,
            Factor::Panels(panels) => panels.element == Element::Float32,
            Factor::Quantized(_) | Factor::Expanded(_) => false,
        })
    }

    pub fn vector(&self, id: VectorId) -> &[f32] {
        &self.vectors[id.0 as usize]
    }

    pub fn table_row(&self, id: TableId, row: usize) -> &[f32] {
        let width = self.layout.info(self.layout.tables[id.0 as usize]).width();
        &self.tables[id.0 as usize][row * width..][..width]
    }

    pub fn matrix(&self, id: MatrixId) -> Factor<'_> {
        self.matrices[id.0 as usize].clone()
    }

    pub fn memory_after(&self, id: MatrixId) -> &[u8] {
        self.matrices[(id.0 as usize + 1) % self.matrices.len()].memory()
    }
}
