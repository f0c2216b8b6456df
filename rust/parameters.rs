//! The parameters of a compiled tree: what there are, and how they come from a checkpoint.
//!
//! Blocks hold ids. A [`Layout`] lists what the blocks asked for; [`Parameters::load`] fills it from a
//! checkpoint through [`View`]s, each matrix packed once into panels, in the order of execution.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde::Deserialize;

use crate::error::{Error, Result, room};
use crate::formats::{TensorSource, first_non_finite};
use crate::interrupt;
use crate::weights::{Arena, Panels};

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
        self.params.push(ParamInfo { path: path.to_owned(), shape });
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

    pub fn params(&self) -> &[ParamInfo] {
        &self.params
    }

    fn info(&self, id: ParamId) -> &ParamInfo {
        &self.params[id.0 as usize]
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

/// The parameters of a model, ready for inference.
pub struct Parameters {
    layout: Layout,
    vectors: Vec<Vec<f32>>,
    tables: Vec<Vec<f32>>,
    matrices: Vec<Panels>,
}

impl Parameters {
    /// Reads every parameter of the layout from `source` through its view.
    ///
    /// Errors: a parameter without a view, a tensor that is missing, of the wrong shape, or that holds
    /// NaN or infinity, all by name; too little memory; Ctrl-C.
    pub fn load(layout: Layout, source: &dyn TensorSource, views: &HashMap<String, View>) -> Result<Self> {
        let loader = Loader { layout: &layout, source, views };
        loader.check()?;
        let vectors = layout.vectors.iter().map(|parts| loader.vector(parts)).collect::<Result<_>>()?;
        let tables = layout.tables.iter().map(|&id| loader.table(id)).collect::<Result<_>>()?;
        let floats = layout.matrices.iter().try_fold(0usize, |sum, parts| {
            let (n, k) = loader.size(parts);
            Panels::floats(n, k)?.checked_add(sum)
        });
        let floats = floats.ok_or(Error::Memory { what: "the weights".into(), bytes: usize::MAX })?;
        let arena = Arena::with_capacity(floats)?;
        let matrices =
            layout.matrices.iter().map(|parts| loader.matrix(parts, &arena)).collect::<Result<_>>()?;
        Ok(Parameters { layout, vectors, tables, matrices })
    }

    pub fn params(&self) -> &[ParamInfo] {
        self.layout.params()
    }

    /// Bytes that the parameters take in memory.
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

thread_local! {
    /// A row of a tensor, before the part that a parameter views is taken out of it.
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

struct Loader<'a> {
    layout: &'a Layout,
    source: &'a dyn TensorSource,
    views: &'a HashMap<String, View>,
}

impl Loader<'_> {
    fn view(&self, info: &ParamInfo) -> Result<&View> {
        self.views.get(&info.path).ok_or_else(|| {
            Error::argument(
                &info.path,
                "no tensor for it in the architecture's table",
                "one for every parameter",
            )
        })
    }

    /// `[outputs, inputs]` of a matrix of several parts.
    fn size(&self, parts: &[ParamId]) -> (usize, usize) {
        let rows = parts.iter().map(|&part| self.layout.info(part).rows()).sum();
        (rows, self.layout.info(parts[0]).width())
    }

    /// Checks that the tensors have the shapes that their views need, before anything is allocated.
    fn check(&self) -> Result<()> {
        let mut outputs: HashMap<&str, usize> = HashMap::new();
        for info in &self.layout.params {
            let view = self.view(info)?;
            let end = outputs.entry(&view.tensor).or_default();
            *end = (*end).max(view.first + info.rows());
        }
        for info in &self.layout.params {
            let view = self.view(info)?;
            let rows = outputs[view.tensor.as_str()];
            let expected = match (info.shape.len(), view.transpose) {
                (1, _) => vec![rows],
                (_, false) => vec![rows, info.width()],
                (_, true) => vec![info.width(), rows],
            };
            let found = &self.source.info(&view.tensor)?.shape;
            if *found != expected {
                let expected = format!("{expected:?} (for {})", info.path);
                return Err(Error::file(
                    self.source.path(),
                    format!("shape of {:?}", view.tensor),
                    format!("{found:?}"),
                    expected,
                ));
            }
            if let Some(heads) = view.interleaved_heads
                && (heads == 0 || !info.rows().is_multiple_of(2 * heads))
            {
                let found = format!("{} rows in {heads} heads", info.rows());
                return Err(Error::argument(&info.path, found, "heads of an even number of rows"));
            }
        }
        Ok(())
    }

    fn vector(&self, parts: &[ParamId]) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        for &part in parts {
            let info = self.layout.info(part);
            let view = self.view(info)?;
            let mut whole = vec![0.0; self.source.info(&view.tensor)?.shape[0]];
            self.read(view, 0, &mut whole)?;
            values.extend((0..info.rows()).map(|row| whole[view.source_row(row, info.rows())]));
        }
        Ok(values)
    }

    fn table(&self, id: ParamId) -> Result<Vec<f32>> {
        let info = self.layout.info(id);
        let view = self.view(info)?;
        let len = info.rows() * info.width();
        let mut values = room(len, &info.path)?;
        values.resize(len, 0.0);
        for (row, out) in values.chunks_exact_mut(info.width()).enumerate() {
            self.read(view, view.source_row(row, info.rows()), out)?;
        }
        self.source.release_pages(&view.tensor)?;
        Ok(values)
    }

    fn matrix(&self, parts: &[ParamId], arena: &Arc<Arena>) -> Result<Panels> {
        interrupt::check()?;
        let infos: Vec<&ParamInfo> = parts.iter().map(|&part| self.layout.info(part)).collect();
        let views: Vec<&View> = infos.iter().map(|info| self.view(info)).collect::<Result<_>>()?;
        let (n, k) = self.size(parts);
        let failed = Mutex::new(None);
        let keep = |result: Result<()>| {
            if let Err(error) = result {
                failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
            }
        };
        let panels = if views[0].transpose {
            arena.panels_transposed(n, k, |input, row| keep(self.input_row(&infos, &views, input, row)))?
        } else {
            arena.panels(n, k, |output, row| keep(self.output_row(&infos, &views, output, row)))?
        };
        if let Some(error) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(error);
        }
        views.iter().try_for_each(|view| self.source.release_pages(&view.tensor))?;
        Ok(panels)
    }

    /// Row `output` of a matrix whose parts are stored `[outputs, inputs]`.
    fn output_row(
        &self,
        infos: &[&ParamInfo],
        views: &[&View],
        output: usize,
        row: &mut [f32],
    ) -> Result<()> {
        let mut output = output;
        for (info, view) in infos.iter().zip(views) {
            if output < info.rows() {
                return self.read(view, view.source_row(output, info.rows()), row);
            }
            output -= info.rows();
        }
        Ok(())
    }

    /// The weights of one input in all outputs, from parts that are stored `[inputs, outputs]`.
    fn input_row(&self, infos: &[&ParamInfo], views: &[&View], input: usize, row: &mut [f32]) -> Result<()> {
        let mut row = row;
        for (info, view) in infos.iter().zip(views) {
            let (part, rest) = row.split_at_mut(info.rows());
            ROW.with_borrow_mut(|whole| {
                whole.resize(self.source.info(&view.tensor)?.shape[1], 0.0);
                self.read(view, input, whole)?;
                for (output, value) in part.iter_mut().enumerate() {
                    *value = whole[view.source_row(output, info.rows())];
                }
                Ok::<(), Error>(())
            })?;
            row = rest;
        }
        Ok(())
    }

    /// Reads one row of a tensor and checks that it holds numbers.
    fn read(&self, view: &View, row: usize, out: &mut [f32]) -> Result<()> {
        self.source.read_rows(&view.tensor, row..row + 1, out)?;
        match first_non_finite(out) {
            None => Ok(()),
            Some(index) => Err(Error::file(
                self.source.path(),
                format!("tensor {:?}", view.tensor),
                format!("{} at row {row}, column {index}", out[index]),
                "finite numbers",
            )),
        }
    }
}
