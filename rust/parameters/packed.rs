//! Parameters to infer with: every matrix as panels, in the order of execution.

use std::collections::HashMap;

use super::load::Loader;
use super::{Layout, MatrixId, TableId, VectorId, View};
use crate::error::{Error, Result};
use crate::formats::TensorSource;
use crate::weights::{Arena, Panels};

pub struct Packed {
    pub(super) layout: Layout,
    vectors: Vec<Vec<f32>>,
    tables: Vec<Vec<f32>>,
    matrices: Vec<Panels>,
}

impl Packed {
    pub fn load(layout: Layout, source: &dyn TensorSource, views: &HashMap<String, View>) -> Result<Self> {
        let loader = Loader { layout: &layout, source, views };
        loader.check()?;
        let vectors = layout.vectors.iter().map(|parts| loader.vector(parts)).collect::<Result<_>>()?;
        let tables = layout.tables.iter().map(|&id| loader.table(id)).collect::<Result<_>>()?;
        let floats = layout.matrices.iter().try_fold(0usize, |sum, parts| {
            let (n, k) = layout.size(parts);
            Panels::floats(n, k)?.checked_add(sum)
        });
        let floats = floats.ok_or(Error::Memory { what: "the weights".into(), bytes: usize::MAX })?;
        let arena = Arena::with_capacity(floats)?;
        let matrices =
            layout.matrices.iter().map(|parts| loader.matrix(parts, &arena)).collect::<Result<_>>()?;
        Ok(Packed { layout, vectors, tables, matrices })
    }

    pub fn bytes(&self) -> usize {
        let plain: usize = self.vectors.iter().chain(&self.tables).map(Vec::len).sum();
        let packed: usize = self.matrices.iter().filter_map(|m| Panels::floats(m.n, m.k)).sum();
        (plain + packed) * size_of::<f32>()
    }

    pub fn vector(&self, id: VectorId) -> &[f32] {
        &self.vectors[id.0 as usize]
    }

    pub fn table_row(&self, id: TableId, row: usize) -> &[f32] {
        let width = self.layout.info(self.layout.tables[id.0 as usize]).width();
        &self.tables[id.0 as usize][row * width..][..width]
    }

    pub fn matrix(&self, id: MatrixId) -> &Panels {
        &self.matrices[id.0 as usize]
    }
}
