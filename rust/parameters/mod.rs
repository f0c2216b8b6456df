//! The parameters of a compiled tree: what there are, and how they come from a checkpoint.
//!
//! Blocks hold ids. A [`Layout`] lists what the blocks asked for; loading fills it from a checkpoint through
//! [`View`]s. To infer, each matrix is packed once into panels, in the order of execution ([`packed`]); to
//! train, the checkpoint's tensors lie in one array, in their own layout ([`flat`]). Either gives the same bits.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use crate::error::Result;
use crate::formats::{DType, TensorSource};
use crate::kernels::Factor;

mod flat;
mod gradients;
mod load;
mod packed;

pub use flat::{Flat, Tensor};
pub use gradients::Sink;
use packed::Packed;

/// A parameter of the checkpoint: an index into [`Layout::params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(u32);

/// A stored vector: one parameter, or those of several outputs, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VectorId(u32);

/// A stored table, whose rows are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableId(u32);

/// A stored matrix: one parameter, or those of several outputs over the same inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixId(u32);

/// What a parameter is called and how large it is: `[len]` or `[rows, width]`.
#[derive(Clone, Debug)]
pub struct ParamInfo {
    pub path: String,
    pub shape: Vec<usize>,
    /// No checkpoint has it: it begins as zeros.
    pub added: bool,
}

impl ParamInfo {
    fn rows(&self) -> usize {
        self.shape[0]
    }

    fn width(&self) -> usize {
        self.shape[1]
    }
}

/// The parameters that a tree asked for, and how each is stored.
#[derive(Default)]
pub struct Layout {
    params: Vec<ParamInfo>,
    vectors: Vec<Vec<ParamId>>,
    tables: Vec<ParamId>,
    matrices: Vec<Vec<ParamId>>,
}

impl Layout {
    fn add(&mut self, path: &str, shape: Vec<usize>) -> ParamId {
        self.params.push(ParamInfo { path: path.to_owned(), shape, added: false });
        ParamId((self.params.len() - 1) as u32)
    }

    /// Parts, each a path and a length.
    pub fn vector(&mut self, parts: &[(String, usize)]) -> VectorId {
        let parts = parts.iter().map(|(path, len)| self.add(path, vec![*len])).collect();
        self.vectors.push(parts);
        VectorId((self.vectors.len() - 1) as u32)
    }

    pub fn table(&mut self, path: &str, rows: usize, width: usize) -> TableId {
        let id = self.add(path, vec![rows, width]);
        self.tables.push(id);
        TableId((self.tables.len() - 1) as u32)
    }

    /// Outputs, each a path and a size, over the same inputs.
    pub fn matrix(&mut self, outputs: &[(String, usize)], inputs: usize) -> MatrixId {
        let parts = outputs.iter().map(|(path, rows)| self.add(path, vec![*rows, inputs])).collect();
        self.matrices.push(parts);
        MatrixId((self.matrices.len() - 1) as u32)
    }

    /// As [`Layout::matrix`], of parameters that no checkpoint has.
    pub fn added_matrix(&mut self, outputs: &[(String, usize)], inputs: usize) -> MatrixId {
        let id = self.matrix(outputs, inputs);
        for part in &self.matrices[id.0 as usize] {
            self.params[part.0 as usize].added = true;
        }
        id
    }

    pub fn params(&self) -> &[ParamInfo] {
        &self.params
    }

    /// The parameters that a checkpoint has.
    fn stored(&self) -> impl Iterator<Item = &ParamInfo> {
        self.params.iter().filter(|info| !info.added)
    }

    fn info(&self, id: ParamId) -> &ParamInfo {
        &self.params[id.0 as usize]
    }

    /// `[outputs, inputs]` of a matrix of several parts.
    fn size(&self, parts: &[ParamId]) -> (usize, usize) {
        let rows = parts.iter().map(|&part| self.info(part).rows()).sum();
        (rows, self.info(parts[0]).width())
    }
}

/// Where a parameter stands in a checkpoint. As in `python/llmcore/checkpoint.py`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// The tensor's name in the file.
    pub tensor: String,
    /// The tensor is stored `[inputs, outputs]`.
    #[serde(default)]
    pub transpose: bool,
    /// The parameter's first row among the tensor's outputs.
    #[serde(default)]
    pub first: usize,
    /// The rows of each of so many heads are stored with the two halves of a rotated pair interleaved.
    #[serde(default)]
    pub interleaved_heads: Option<usize>,
}

impl View {
    /// The row of the tensor's outputs that holds row `row` of a parameter of `rows` rows.
    ///
    /// Entries `i` and `i + n / 2` of a head turn together; interleaved they are `2i` and `2i + 1`.
    fn source_row(&self, row: usize, rows: usize) -> usize {
        let Some(heads) = self.interleaved_heads else { return self.first + row };
        let size = rows / heads;
        let (head, entry) = (row / size, row % size);
        let half = size / 2;
        let stored = if entry < half { 2 * entry } else { 2 * (entry - half) + 1 };
        self.first + head * size + stored
    }
}

/// How matrices are kept that infer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// As the checkpoint has them: quantised, or in 16 bits or 32. Rows are rounded to bytes for what is quantised, and
    /// to bfloat16 for what is that.
    AsStored,
    Float32,
    /// Rounded to bfloat16, as the rows that they are multiplied with are.
    Bfloat16,
    /// Rounded to a type that [`can_quantize`](crate::formats::quantize::can_quantize): a matrix whose inputs are no
    /// multiple of its block stays float32, and what is quantised otherwise is refused.
    Quantized(DType),
}

/// The parameters of a model.
pub enum Parameters {
    Packed(Packed),
    Flat(Flat),
}

impl Parameters {
    /// Reads every parameter of the layout from `source` through its view, to infer; matrices as `storage` says.
    ///
    /// Errors: a parameter without a view, a tensor that is missing, of the wrong shape, or that holds
    /// NaN or infinity, all by name; too little memory; Ctrl-C.
    pub fn load(
        layout: Layout,
        source: &dyn TensorSource,
        views: &HashMap<String, View>,
        storage: Storage,
    ) -> Result<Self> {
        Ok(Parameters::Packed(Packed::load(layout, source, views, storage)?))
    }

    /// As [`Parameters::load`], to train: where `tensors` say, all but the `frozen` of them with gradients; those
    /// are kept as `storage` says.
    ///
    /// Errors: also a tensor that is frozen but not there, or that shares a matrix with one that is not frozen.
    pub fn load_flat(
        layout: Layout,
        source: &dyn TensorSource,
        views: &HashMap<String, View>,
        tensors: &HashMap<String, View>,
        frozen: &HashSet<String>,
        storage: Storage,
    ) -> Result<Self> {
        Ok(Parameters::Flat(Flat::load(layout, source, views, tensors, frozen, storage)?))
    }

    pub fn params(&self) -> &[ParamInfo] {
        match self {
            Parameters::Packed(packed) => packed.layout.params(),
            Parameters::Flat(flat) => flat.layout.params(),
        }
    }

    /// Bytes that the parameters take in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Parameters::Packed(packed) => packed.bytes(),
            Parameters::Flat(flat) => flat.bytes(),
        }
    }

    /// Of each matrix the path of its first parameter, and its bytes in memory.
    pub fn matrix_bytes(&self) -> Vec<(String, usize)> {
        let (layout, bytes): (_, &dyn Fn(MatrixId) -> usize) = match self {
            Parameters::Packed(packed) => (&packed.layout, &|id| packed.matrix_bytes(id)),
            Parameters::Flat(flat) => (&flat.layout, &|id| flat.matrix_bytes(id)),
        };
        let matrices = (0u32..).map(MatrixId).zip(&layout.matrices);
        matrices.map(|(id, parts)| (layout.info(parts[0]).path.clone(), bytes(id))).collect()
    }

    pub fn vector(&self, id: VectorId) -> &[f32] {
        match self {
            Parameters::Packed(packed) => packed.vector(id),
            Parameters::Flat(flat) => flat.vector(id),
        }
    }

    pub fn table_row(&self, id: TableId, row: usize) -> &[f32] {
        match self {
            Parameters::Packed(packed) => packed.table_row(id, row),
            Parameters::Flat(flat) => flat.table_row(id, row),
        }
    }

    /// `[outputs, inputs]`; of parameters that train it can be transposed.
    pub fn matrix(&self, id: MatrixId) -> Factor<'_> {
        match self {
            Parameters::Packed(packed) => packed.matrix(id),
            Parameters::Flat(flat) => flat.matrix(id),
        }
    }

    /// The memory of the matrix that is multiplied after this one; of the first after the last.
    pub fn memory_after(&self, id: MatrixId) -> &[u8] {
        match self {
            Parameters::Packed(packed) => packed.memory_after(id),
            Parameters::Flat(_) => &[],
        }
    }

    /// As [`Parameters::flat`], to change.
    pub fn flat_mut(&mut self) -> &mut Flat {
        match self {
            Parameters::Flat(flat) => flat,
            Parameters::Packed(_) => unreachable!("packed parameters do not train"),
        }
    }

    /// The parameters of a model that trains.
    pub fn flat(&self) -> &Flat {
        match self {
            Parameters::Flat(flat) => flat,
            Parameters::Packed(_) => unreachable!("packed parameters do not train"),
        }
    }
}
