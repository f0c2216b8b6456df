//! Reading parameters from a checkpoint through their views.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::{Layout, ParamId, ParamInfo, Storage, View};
use crate::error::{Error, Result, room};
use crate::formats::blocks::{self, Form};
use crate::formats::quantize::quantize;
use crate::formats::{DType, TensorSource, first_non_finite};
use crate::interrupt;
use crate::kernels::Factor;
use crate::weights::{Arena, Element, Panels, Quantized};

thread_local! {
    /// A row of a tensor, before the part that a parameter views is taken out of it.
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Errors: the table lacks the parameter.
pub(super) fn view_of<'a>(views: &'a HashMap<String, View>, info: &ParamInfo) -> Result<&'a View> {
    views.get(&info.path).ok_or_else(|| {
        Error::argument(&info.path, "no tensor for it in the architecture's table", "one for every parameter")
    })
}

pub(super) struct Loader<'a> {
    pub layout: &'a Layout,
    pub source: &'a dyn TensorSource,
    pub views: &'a HashMap<String, View>,
    pub storage: Storage,
}

impl Loader<'_> {
    fn view(&self, info: &ParamInfo) -> Result<&View> {
        view_of(self.views, info)
    }

    /// Checks that the tensors have the shapes that their views need, before anything is allocated.
    pub fn check(&self) -> Result<()> {
        let mut outputs: HashMap<&str, usize> = HashMap::new();
        for info in self.layout.stored() {
            let view = self.view(info)?;
            let end = outputs.entry(&view.tensor).or_default();
            *end = (*end).max(view.first + info.rows());
        }
        for info in self.layout.stored() {
            let view = self.view(info)?;
            let rows = outputs[view.tensor.as_str()];
            let expected = match (info.shape.len(), view.transpose) {
                (1, _) => vec![rows],
                (_, false) => vec![rows, info.width()],
                (_, true) => vec![info.width(), rows],
            };
            let tensor = self.source.info(&view.tensor)?;
            if let Storage::Quantized(dtype) = self.storage
                && Form::of(tensor.dtype).is_some()
                && tensor.dtype != dtype
            {
                return Err(Error::file(
                    self.source.path(),
                    format!("type of {:?}", view.tensor),
                    format!("{}, which is quantised already", tensor.dtype.name()),
                    format!("floats, or {} (dtype \"auto\" keeps what is stored)", dtype.name()),
                ));
            }
            let found = &tensor.shape;
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

    pub fn vector(&self, parts: &[ParamId]) -> Result<Vec<f32>> {
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

    pub fn table(&self, id: ParamId) -> Result<Vec<f32>> {
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

    /// Reads a parameter, element by element: `put(row, column, value)`.
    pub fn scatter(&self, id: ParamId, mut put: impl FnMut(usize, usize, f32)) -> Result<()> {
        let info = self.layout.info(id);
        let view = self.view(info)?;
        let shape = &self.source.info(&view.tensor)?.shape;
        let is_vector = info.shape.len() == 1;
        // A line of the tensor is a row of the parameter, or, of all its rows, an element.
        let by_element = is_vector || view.transpose;
        let mut line = vec![0.0; shape[shape.len() - 1]];
        let lines = match (is_vector, view.transpose) {
            (true, _) => 1,
            (false, true) => info.width(),
            (false, false) => info.rows(),
        };
        for index in 0..lines {
            if by_element {
                self.read(view, index, &mut line)?;
                for row in 0..info.rows() {
                    put(row, index, line[view.source_row(row, info.rows())]);
                }
            } else {
                self.read(view, view.source_row(index, info.rows()), &mut line)?;
                line.iter().enumerate().for_each(|(column, &value)| put(index, column, value));
            }
        }
        self.source.release_pages(&view.tensor)
    }

    /// The type of a parameter in the checkpoint, if it is there.
    fn dtype(&self, part: ParamId) -> Result<Option<DType>> {
        let info = self.layout.info(part);
        if info.added {
            return Ok(None);
        }
        Ok(Some(self.source.info(&self.view(info)?.tensor)?.dtype))
    }

    /// The types of a matrix's parts, if it is kept in blocks: as they are stored, where all of them are quantised, or
    /// rounded.
    fn quantized(&self, parts: &[ParamId]) -> Result<Option<Vec<DType>>> {
        if let Storage::Quantized(dtype) = self.storage {
            let fits = self.layout.size(parts).1.is_multiple_of(dtype.block().0)
                && !parts.iter().any(|&part| self.layout.info(part).added);
            return Ok(fits.then(|| vec![dtype; parts.len()]));
        }
        let dtype = |&part: &ParamId| {
            let quantized = self.dtype(part)?.filter(|&dtype| Form::of(dtype).is_some());
            Ok(quantized.filter(|_| self.view(self.layout.info(part)).is_ok_and(|view| !view.transpose)))
        };
        match self.storage {
            Storage::AsStored => parts.iter().map(dtype).collect(),
            Storage::Float32 | Storage::Bfloat16 | Storage::Quantized(_) => Ok(None),
        }
    }

    /// What a matrix of panels is stored as.
    fn element(&self, parts: &[ParamId]) -> Result<Element> {
        let all_are = |dtype: DType| {
            let found = parts.iter().map(|&part| self.dtype(part));
            found.collect::<Result<Vec<_>>>().map(|found| found.iter().all(|found| *found == Some(dtype)))
        };
        Ok(match self.storage {
            Storage::Bfloat16 => Element::Bfloat16,
            Storage::AsStored if all_are(DType::BF16)? => Element::Bfloat16,
            Storage::AsStored if all_are(DType::F16)? => Element::Float16,
            Storage::AsStored | Storage::Float32 | Storage::Quantized(_) => Element::Float32,
        })
    }

    pub fn is_quantized(&self, parts: &[ParamId]) -> Result<bool> {
        Ok(self.quantized(parts)?.is_some())
    }

    /// Floats of an arena that a matrix takes; None if that overflows.
    pub fn floats(&self, parts: &[ParamId]) -> Result<Option<usize>> {
        let (n, k) = self.layout.size(parts);
        let Some(dtypes) = self.quantized(parts)? else {
            return Ok(Panels::floats(self.element(parts)?, n, k));
        };
        let sizes = parts.iter().zip(dtypes).filter_map(|(&part, dtype)| {
            Some(Quantized::floats(Form::of(dtype)?, self.layout.info(part).rows(), k))
        });
        Ok(sizes.sum())
    }

    pub fn matrix(&self, parts: &[ParamId], arena: &Arc<Arena>) -> Result<Factor<'static>> {
        interrupt::check()?;
        match self.quantized(parts)? {
            None => self.panels(parts, arena).map(Factor::Panels),
            Some(dtypes) => {
                let parts = parts.iter().zip(dtypes).map(|(&part, dtype)| self.blocks(part, dtype, arena));
                parts.collect::<Result<_>>().map(Factor::Quantized)
            }
        }
    }

    /// A parameter in blocks: as it is stored, or rounded to that.
    fn blocks(&self, part: ParamId, dtype: DType, arena: &Arc<Arena>) -> Result<Quantized> {
        let info = self.layout.info(part);
        let view = self.view(info)?;
        let (n, k) = (info.rows(), info.width());
        let failed = Failed::default();
        let stored = self.source.info(&view.tensor)?.dtype;
        let matrix =
            if stored == dtype && !view.transpose {
                arena.quantized(dtype, n, k, |row, out| {
                    failed.keep(self.stored_row(view, dtype, view.source_row(row, n), out));
                })?
            } else if view.transpose {
                // A row of outputs stands in all rows of the file: once through it is quicker than once for each.
                let panels = Panels::pack_transposed(Element::Float32, n, k, |input, row| {
                    failed.keep(self.input_row(&[info], &[view], input, row));
                })?;
                arena.quantized(dtype, n, k, |row, out| {
                    failed.keep(self.rounded(view, dtype, row, k, out, |values| {
                        panels.row(row, values);
                        Ok(())
                    }));
                })?
            } else {
                arena.quantized(dtype, n, k, |row, out| {
                    let source_row = view.source_row(row, n);
                    failed.keep(self.rounded(view, dtype, source_row, k, out, |values| {
                        self.read(view, source_row, values)
                    }));
                })?
            };
        failed.check()?;
        self.source.release_pages(&view.tensor)?;
        Ok(matrix)
    }

    /// A row of `k` numbers, which `read` gives, rounded to blocks.
    fn rounded(
        &self,
        view: &View,
        dtype: DType,
        row: usize,
        k: usize,
        out: &mut [u8],
        read: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<()> {
        ROW.with_borrow_mut(|values| {
            values.resize(k, 0.0);
            read(values)?;
            quantize(dtype, values, out);
            let Some((block, found)) = blocks::first_non_finite(dtype, out) else { return Ok(()) };
            let name = format!("tensor {:?}", view.tensor);
            let found = format!("{found} for a scale of {} at row {row}, block {block}", dtype.name());
            Err(Error::file(self.source.path(), name, found, "numbers that float16 has a scale for"))
        })
    }

    fn stored_row(&self, view: &View, dtype: DType, row: usize, out: &mut [u8]) -> Result<()> {
        let stored = self.source.stored_rows(&view.tensor, row..row + 1)?;
        if let Some((block, found)) = blocks::first_non_finite(dtype, stored) {
            return Err(self.not_finite(view, found, row, block * dtype.block().0));
        }
        out.copy_from_slice(stored);
        Ok(())
    }

    fn panels(&self, parts: &[ParamId], arena: &Arc<Arena>) -> Result<Panels> {
        let infos: Vec<&ParamInfo> = parts.iter().map(|&part| self.layout.info(part)).collect();
        let views: Vec<&View> = infos.iter().map(|info| self.view(info)).collect::<Result<_>>()?;
        let (n, k) = self.layout.size(parts);
        let element = self.element(parts)?;
        let failed = Failed::default();
        let panels = if views[0].transpose {
            arena.panels_transposed(element, n, k, |input, row| {
                failed.keep(self.input_row(&infos, &views, input, row))
            })?
        } else {
            arena.panels(element, n, k, |output, row| {
                failed.keep(self.output_row(&infos, &views, output, row))
            })?
        };
        failed.check()?;
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
            Some(index) => Err(self.not_finite(view, out[index], row, index)),
        }
    }

    fn not_finite(&self, view: &View, found: f32, row: usize, column: usize) -> Error {
        Error::file(
            self.source.path(),
            format!("tensor {:?}", view.tensor),
            format!("{found} at row {row}, column {column}"),
            "finite numbers",
        )
    }
}

/// The first error of several threads.
#[derive(Default)]
struct Failed(Mutex<Option<Error>>);

impl Failed {
    fn keep(&self, result: Result<()>) {
        if let Err(error) = result {
            self.0.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
        }
    }

    fn check(self) -> Result<()> {
        self.0.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
    }
}
