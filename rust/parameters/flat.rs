//! Parameters to train: the checkpoint's tensors in their own layout, one after the other in one array.
//!
//! Gradients and the state of an optimiser are arrays in the same order. Tensors that train come first, so that
//! those arrays end where the frozen ones begin. A frozen matrix that the checkpoint has quantised is kept as it is.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::load::{Loader, view_of};
use super::{Layout, MatrixId, ParamId, Storage, TableId, VectorId, View};
use crate::error::{Error, Result};
use crate::formats::TensorSource;
use crate::interrupt;
use crate::kernels::{Expanded, Factor, Matrix};
use crate::weights::{Arena, Piece, Quantized};

/// A tensor of the checkpoint.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    /// Its first float.
    pub start: usize,
    pub trained: bool,
    /// It is kept quantised, in neither array.
    kept: bool,
}

impl Tensor {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Where a matrix stands: the weight of output i for input j at `start + i · row_stride + j · column_stride`.
/// A vector is a matrix of one column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub start: usize,
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl Place {
    fn at(&self, row: usize, column: usize) -> usize {
        self.start + row * self.row_stride + column * self.column_stride
    }

    /// Of a vector, or of a matrix whose rows lie one after the other.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.rows * self.columns
    }
}

pub struct Flat {
    pub(super) layout: Layout,
    tensors: Vec<Tensor>,
    trained: Piece,
    frozen: Piece,
    vectors: Vec<Place>,
    tables: Vec<Place>,
    matrices: Vec<Held>,
    /// Tensors that are kept quantised, in parts: the name, where a part would stand if the tensor began at 0, and
    /// the part.
    kept: Vec<(String, Place, Quantized)>,
}

/// A matrix in one of the arrays, or as the checkpoint has it.
enum Held {
    Floats(Place),
    Kept(Vec<Quantized>),
}

impl Flat {
    pub fn load(
        layout: Layout,
        source: &dyn TensorSource,
        views: &HashMap<String, View>,
        tensors: &HashMap<String, View>,
        frozen: &HashSet<String>,
        storage: Storage,
    ) -> Result<Self> {
        let loader = Loader { layout: &layout, source, views, storage };
        loader.check()?;
        let mut keeps = HashSet::new();
        let mut room = 0;
        for parts in &layout.matrices {
            let names = parts.iter().map(|&part| view_of(tensors, layout.info(part)));
            let all_frozen =
                names.collect::<Result<Vec<_>>>()?.iter().all(|view| frozen.contains(&view.tensor));
            if all_frozen && loader.is_quantized(parts)? {
                keeps.extend(parts.iter().copied());
                room += loader.floats(parts)?.ok_or_else(too_large)?;
            }
        }
        let plan = Plan::new(&layout, tensors, frozen, &keeps)?;
        let arena = Arena::with_capacity(room)?;
        let mut kept = Vec::new();
        let mut matrices = Vec::new();
        for parts in &layout.matrices {
            matrices.push(match parts.iter().all(|part| keeps.contains(part)) {
                false => Held::Floats(plan.join(&layout, parts)?),
                true => {
                    let Factor::Quantized(found) = loader.matrix(parts, &arena)? else {
                        return Err(too_large());
                    };
                    for (part, found) in parts.iter().zip(&found) {
                        let name = view_of(tensors, layout.info(*part))?.tensor.clone();
                        kept.push((name, plan.params[part.0 as usize], found.clone()));
                    }
                    Held::Kept(found)
                }
            });
        }
        let vectors = layout.vectors.iter().map(|parts| plan.join(&layout, parts)).collect::<Result<_>>()?;
        let tables = layout.tables.iter().map(|id| plan.params[id.0 as usize]).collect();
        let floats = |trained: bool| {
            let tensors = plan.tensors.iter().filter(|tensor| tensor.trained == trained && !tensor.kept);
            Piece::new(tensors.map(Tensor::len).sum(), "the weights")
        };
        let (mut trained, mut frozen) = (floats(true)?, floats(false)?);
        for (id, place) in (0u32..).map(ParamId).zip(&plan.params) {
            interrupt::check()?;
            if layout.info(id).added || keeps.contains(&id) {
                continue;
            }
            let (values, first) =
                if place.start < trained.len() { (&mut trained, 0) } else { (&mut frozen, trained.len()) };
            loader.scatter(id, |row, column, value| values[place.at(row, column) - first] = value)?;
        }
        Ok(Flat { tensors: plan.tensors, trained, frozen, vectors, tables, matrices, kept, layout })
    }

    /// The tensors, in the order of the array.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensors that train, one after the other.
    pub fn trained(&self) -> &[f32] {
        &self.trained
    }

    /// As [`Flat::trained`], to change.
    pub fn trained_mut(&mut self) -> &mut Piece {
        &mut self.trained
    }

    pub fn bytes(&self) -> usize {
        let kept = self.kept.iter().map(|(_, _, part)| part.bytes()).sum::<usize>();
        size_of_val(&*self.trained) + size_of_val(&*self.frozen) + kept
    }

    pub(super) fn matrix_bytes(&self, id: MatrixId) -> usize {
        match &self.matrices[id.0 as usize] {
            Held::Floats(place) => place.rows * place.columns * size_of::<f32>(),
            Held::Kept(parts) => parts.iter().map(Quantized::bytes).sum(),
        }
    }

    /// All floats from one on that train, or that are frozen.
    fn from(&self, start: usize) -> &[f32] {
        match start.checked_sub(self.trained.len()) {
            None => &self.trained[start..],
            Some(start) => &self.frozen[start..],
        }
    }

    /// A tensor's values, in its shape.
    pub fn tensor(&self, tensor: &Tensor) -> Vec<f32> {
        if !tensor.kept {
            return self.from(tensor.start)[..tensor.len()].to_vec();
        }
        let mut values = vec![0.0; tensor.len()];
        for (_, place, part) in self.kept.iter().filter(|(name, ..)| *name == tensor.name) {
            let mut row = vec![0.0; part.k];
            for i in 0..part.n {
                part.row(i, &mut row);
                row.iter().enumerate().for_each(|(j, value)| values[place.at(i, j)] = *value);
            }
        }
        values
    }

    pub(super) fn vector(&self, id: VectorId) -> &[f32] {
        let place = self.vectors[id.0 as usize];
        &self.from(place.start)[..place.rows]
    }

    pub(super) fn vector_range(&self, id: VectorId) -> Range<usize> {
        self.vectors[id.0 as usize].range()
    }

    pub(super) fn table(&self, id: TableId) -> Place {
        self.tables[id.0 as usize]
    }

    /// Where a matrix stands; None if it is kept as the checkpoint has it.
    pub(super) fn place(&self, id: MatrixId) -> Option<Place> {
        match self.matrices[id.0 as usize] {
            Held::Floats(place) => Some(place),
            Held::Kept(_) => None,
        }
    }

    pub(super) fn table_row(&self, id: TableId, row: usize) -> &[f32] {
        let place = self.table(id);
        &self.from(place.at(row, 0))[..place.columns]
    }

    pub(super) fn matrix(&self, id: MatrixId) -> Factor<'_> {
        match &self.matrices[id.0 as usize] {
            Held::Kept(parts) => Factor::Expanded(Expanded::new(parts.clone())),
            Held::Floats(Place { start, rows, columns, row_stride, column_stride }) => {
                Matrix::strided(self.from(*start), *rows, *columns, *row_stride, *column_stride).into()
            }
        }
    }
}

fn too_large() -> Error {
    Error::Memory { what: "the weights".into(), bytes: usize::MAX }
}

/// Where everything will stand.
struct Plan {
    tensors: Vec<Tensor>,
    /// By parameter.
    params: Vec<Place>,
}

impl Plan {
    /// Tensors come in the order in which the layout first views them.
    fn new(
        layout: &Layout,
        views: &HashMap<String, View>,
        frozen: &HashSet<String>,
        keeps: &HashSet<ParamId>,
    ) -> Result<Self> {
        let mut tensors: Vec<Tensor> = Vec::new();
        let mut known: HashMap<&str, usize> = HashMap::new();
        let mut viewed = Vec::new();
        for (id, info) in (0u32..).map(ParamId).zip(layout.params()) {
            let view = view_of(views, info)?;
            if view.interleaved_heads.is_some() || view.transpose && info.shape.len() == 1 {
                let expected = "a layout that keeps vectors and the halves of a rotated pair as they are";
                return Err(Error::argument(&info.path, format!("{view:?}"), expected));
            }
            let index = *known.entry(&view.tensor).or_insert_with(|| {
                let name = view.tensor.clone();
                let trained = !frozen.contains(&name);
                let (shape, kept) = (vec![0; info.shape.len()], keeps.contains(&id));
                tensors.push(Tensor { name, shape, start: 0, trained, kept });
                tensors.len() - 1
            });
            let outputs = view.first + info.rows();
            let shape = &mut tensors[index].shape;
            if let [_, width] = info.shape[..] {
                shape[usize::from(!view.transpose)] = width;
            }
            let across = usize::from(view.transpose);
            shape[across] = shape[across].max(outputs);
            viewed.push((view, index));
        }
        let mut seen = vec![0; tensors.len()];
        for (info, (_, index)) in layout.params().iter().zip(&viewed) {
            seen[*index] += info.shape.iter().product::<usize>();
        }
        if let Some((tensor, seen)) = tensors.iter().zip(seen).find(|(tensor, seen)| tensor.len() != *seen) {
            let found = format!("parameters that have {seen} of its {} numbers", tensor.len());
            return Err(Error::argument(&tensor.name, found, "each number in one parameter"));
        }
        if let Some(name) = frozen.iter().find(|name| !known.contains_key(name.as_str())) {
            return Err(Error::argument(
                "frozen",
                format!("{name:?}"),
                "the name of a tensor of the checkpoint",
            ));
        }
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|&index| !tensors[index].trained);
        let mut start = 0;
        for &index in &order {
            if !tensors[index].kept {
                tensors[index].start = start;
                start += tensors[index].len();
            }
        }
        let params = layout.params().iter().zip(viewed).map(|(info, (view, index))| {
            let tensor = &tensors[index];
            let columns = info.shape.get(1).copied().unwrap_or(1);
            let (row_stride, column_stride) =
                if view.transpose { (1, tensor.shape[1]) } else { (columns, 1) };
            let start = tensor.start + view.first * row_stride;
            Place { start, rows: info.rows(), columns, row_stride, column_stride }
        });
        let params = params.collect();
        let tensors = order.iter().map(|&index| tensors[index].clone()).collect();
        Ok(Plan { tensors, params })
    }

    /// The place of several parameters that one product takes together.
    fn join(&self, layout: &Layout, parts: &[ParamId]) -> Result<Place> {
        let mut whole = self.params[parts[0].0 as usize];
        for part in &parts[1..] {
            let next = self.params[part.0 as usize];
            let fits = next.start == whole.at(whole.rows, 0)
                && (next.row_stride, next.column_stride) == (whole.row_stride, whole.column_stride);
            if !fits {
                return Err(Error::argument(
                    &layout.info(*part).path,
                    format!("another place than right after {}", layout.info(parts[0]).path),
                    "parts of one product to be stored alike, and all of them frozen or none",
                ));
            }
            whole.rows += next.rows;
        }
        Ok(whole)
    }
}
