//! A trained model in memory.

use crate::array::lend;
use crate::errors::{UsageError, raised};
use crate::worker;
use crate::{chosen, json};
use numpy::ndarray::ArrayView;
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;
use topk_sae::analysis::{self, codes};
use topk_sae::error::Error;
use topk_sae::export::import::{self, ImportRequest};
use topk_sae::model::{ModelMeta, Params, file};
use topk_sae::rows::Resident;

/// Row offsets (N + 1), latents and values of sparse codes.
type Csr<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<f32>>);

/// A trained model.
#[pyclass(frozen, module = "topk_sae._engine")]
pub struct Model {
    params: Params,
    meta: ModelMeta,
    /// It was read from a file of ours.
    #[pyo3(get)]
    own: bool,
}

#[pymethods]
impl Model {
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        format: Option<&str>,
        k: Option<usize>,
        normalize: bool,
        layer: Option<u32>,
        ignore: Vec<String>,
    ) -> PyResult<Self> {
        let foreign = format.is_some() || k.is_some() || normalize || layer.is_some() || !ignore.is_empty();
        let format = format
            .map(str::parse)
            .transpose()
            .map_err(|why| UsageError::new_err(format!("format: {why}")))?;
        let out = PathBuf::new();
        let request =
            ImportRequest { from: path, format, k, normalize, layer, ignore, out, overwrite: false };
        worker::run(py, false, None, |_, _| {
            let import = || import::read(&request).map(|(params, meta, _)| (params, meta, false));
            let own = || analysis::load_model(&request.from).map(|(params, meta)| (params, meta, true));
            let (params, meta, own) = match if foreign { import() } else { own() } {
                // No model of ours: one of another library, if it is one that is known. Where that lacks an argument, its
                // error says which.
                Err(error @ (Error::Model { .. } | Error::Io { .. })) if request.from.exists() => {
                    import().map_err(|why| if matches!(why, Error::Usage(_)) { why } else { error })
                }
                read => read,
            }?;
            Ok(Self { params, meta, own })
        })
    }

    /// What is needed to run the model, as JSON.
    #[getter]
    fn architecture(&self) -> PyResult<String> {
        json(&self.meta.architecture).map_err(raised)
    }

    /// Where the model came from, as JSON.
    #[getter]
    fn provenance(&self) -> PyResult<String> {
        json(&self.meta.provenance).map_err(raised)
    }

    /// A tensor of the model, read-only and without a copy.
    fn tensor<'py>(this: &Bound<'py, Self>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let Params { d_in, n_latents, w_enc, b_pre, b_lat, threshold, .. } = &this.get().params;
        let owner = || this.clone().into_any();
        let matrix = |values: &[f32]| {
            let view = ArrayView::from_shape((*n_latents, *d_in), values)
                .map_err(|e| raised(Error::Failed(format!("{name}: {e}"))))?;
            // SAFETY: the array keeps `this` alive, which is frozen: its tensors neither move nor change.
            let array = unsafe { PyArray2::borrow_from_array(&view, owner()) };
            array.readwrite().make_nonwriteable();
            Ok(array.into_any())
        };
        let vector = |values: &[f32]| {
            // SAFETY: as above.
            let array = unsafe { PyArray1::borrow_from_array(&ArrayView::from(values), owner()) };
            array.readwrite().make_nonwriteable();
            array.into_any()
        };
        match name {
            "w_enc" => matrix(w_enc),
            "w_dec" => matrix(this.get().params.decoder()),
            "b_pre" => Ok(vector(b_pre)),
            "b_lat" => Ok(vector(b_lat)),
            "threshold" if threshold.is_some() => Ok(vector(threshold.as_deref().unwrap_or_default())),
            _ => Err(UsageError::new_err(format!("a model has no tensor {name}"))),
        }
    }

    /// Writes `model.safetensors`.
    fn save(&self, py: Python<'_>, path: PathBuf, overwrite: bool) -> PyResult<()> {
        if path.exists() && !overwrite {
            let text =
                format!("{} exists already; name another file, or give overwrite=True", path.display());
            return Err(UsageError::new_err(text));
        }
        py.detach(|| file::save(&path, &self.params, &self.meta)).map_err(raised)
    }

    /// Sparse codes of rows (N, D).
    fn encode<'py>(&self, py: Python<'py>, rows: &Bound<'py, PyAny>, device: &str) -> PyResult<Csr<'py>> {
        let (values, d_in) = lend(rows)?;
        let rows = Resident::new(values, d_in).map_err(raised)?;
        let device = chosen(device)?;
        let model = (&self.params, &self.meta);
        let codes =
            worker::run(py, false, None, |stop, _| codes::encode_all(model, Arc::new(rows), device, stop))?;
        let indptr: Vec<i64> = codes.indptr.iter().map(|&at| at as i64).collect();
        let latents: Vec<i32> = codes.indices.iter().map(|&latent| latent as i32).collect();
        Ok((indptr.into_pyarray(py), latents.into_pyarray(py), codes.values.into_pyarray(py)))
    }
}
