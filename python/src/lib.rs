//! The engine behind the Python package `topk_sae`: arguments of Python become requests of the library, results become
//! JSON and arrays. Nothing is computed here.

mod array;
mod errors;
mod model;
mod track;
mod worker;

use array::lend;
use errors::UsageError;
use model::Model;
use pyo3::prelude::*;
use serde::Serialize;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use topk_sae::analysis::features::{FeaturesRequest, features};
use topk_sae::analysis::labels::choose::LabelOptions;
use topk_sae::analysis::{self, EvalRows, Source};
use topk_sae::config::{Options, RowMemory};
use topk_sae::data::{Embeddings, Given};
use topk_sae::error::{Error, Result};
use topk_sae::report::curves::write_plots;
use topk_sae::report::request::{ReportRequest, report};
use topk_sae::rows::Part;
use topk_sae::run::{self, Session};
use topk_sae::{backend::DeviceChoice, console};
use worker::Ear;

/// A value as JSON.
fn json<T: Serialize + ?Sized>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Failed(format!("this result is no JSON: {e}")))
}

fn chosen(device: &str) -> PyResult<DeviceChoice> {
    device.parse().map_err(|why: String| UsageError::new_err(format!("device={device:?}: {why}")))
}

/// Names and values of options.
type Texts = Vec<(String, String)>;

/// Options from names and texts, as the command line has them.
fn settled(given: Texts) -> PyResult<Options> {
    let mut options = Options::default();
    for (name, value) in given {
        let wrong = |why| UsageError::new_err(format!("{name}={value}: {why}"));
        options.set(&name.replace('_', "-"), &value).map_err(wrong)?;
    }
    Ok(options)
}

/// Rows in memory with their ids.
#[pyclass(frozen, module = "topk_sae._engine")]
struct Rows(Arc<Embeddings>);

#[pymethods]
impl Rows {
    #[new]
    fn new(
        py: Python<'_>,
        array: &Bound<'_, PyAny>,
        ids: Option<Vec<String>>,
        groups: Option<Vec<String>>,
        options: Texts,
    ) -> PyResult<Self> {
        let (values, d_in) = lend(array)?;
        let bad_rows = settled(options)?.skip_bad_rows.unwrap_or_default();
        worker::run(py, false, None, |_, _| {
            Ok(Self(Arc::new(Embeddings::given(Given { values, d_in, ids, groups }, bad_rows)?)))
        })
    }
}

/// Files or rows in memory.
#[derive(FromPyObject)]
enum Data {
    Rows(Py<Rows>),
    Files(Vec<PathBuf>),
}

impl Data {
    fn split(self) -> (Vec<PathBuf>, Option<Arc<Embeddings>>) {
        match self {
            Self::Rows(rows) => (vec![], Some(rows.get().0.clone())),
            Self::Files(files) => (files, None),
        }
    }
}

/// Trains in the folder `out`, or goes on there if `resumes`; its place. Without one it is named after the files.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn train(
    py: Python<'_>,
    data: Data,
    out: Option<PathBuf>,
    resumes: bool,
    overwrite: bool,
    options: Texts,
    device: &str,
    shows: bool,
    hear: Option<&Bound<'_, PyAny>>,
) -> PyResult<PathBuf> {
    let mut options = settled(options)?;
    let (files, given) = data.split();
    let out = out.unwrap_or_else(|| run::default_out(&files));
    options.data = given.is_none().then_some(files);
    let device = chosen(device)?;
    worker::run(py, shows, hear, |stop, events| {
        let observer = Mutex::new(Ear(events));
        let session = Session {
            device,
            quiet: false,
            stop,
            draw: Some(write_plots),
            observer: Some(&observer),
            place: None,
        };
        let given = given.map(|rows| run::Rows::Memory(Box::new((*rows).clone())));
        match resumes {
            true => run::resume(&out, given, &session)?,
            false => run::start(&options, given, &out, overwrite, &session)?,
        };
        Ok(out)
    })
}

/// A model and the rows that it is asked about.
fn source(model: PathBuf, data: Data, options: Texts, device: &str) -> PyResult<(Source, Option<RowMemory>)> {
    let (files, given) = data.split();
    let options = settled(options)?;
    let (reading, device) = (options.reading(), chosen(device)?);
    Ok((Source { model, data: files, given, reading, device, quiet: false }, options.memory))
}

/// A split; None is all rows.
fn part(split: &str) -> PyResult<Option<Part>> {
    let wrong = |why: String| UsageError::new_err(format!("split: {why}, or all"));
    if split == "all" { Ok(None) } else { split.parse().map(Some).map_err(wrong) }
}

/// Figures of a model on rows, as JSON: a list of splits.
#[pyfunction]
fn evaluate(
    py: Python<'_>,
    model: PathBuf,
    data: Data,
    split: &str,
    options: Texts,
    device: &str,
) -> PyResult<String> {
    let (source, _) = source(model, data, options, device)?;
    let each = split == "each";
    let wanted = if each { EvalRows::Each } else { part(split)?.map_or(EvalRows::All, EvalRows::Split) };
    worker::run(py, false, None, |stop, _| json(&analysis::evaluate(&source, wanted, stop)?))
}

/// What is asked of latents.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Asked {
    split: String,
    pool: bool,
    top: usize,
    neighbours: usize,
    labels: Option<PathBuf>,
    columns: Option<Vec<String>>,
    min_rows: u64,
    max_values: usize,
    unknown: Vec<String>,
}

fn asked_of(asked: Asked, (source, memory): (Source, Option<RowMemory>)) -> PyResult<FeaturesRequest> {
    let Asked { columns, min_rows, max_values, unknown, .. } = asked;
    let options = LabelOptions { columns, min_rows: min_rows.max(1), max_values, unknown };
    Ok(FeaturesRequest {
        source,
        split: part(&asked.split)?,
        pool: asked.pool,
        top: asked.top,
        neighbours: asked.neighbours,
        labels: asked.labels.map(|path| (path, options)),
        memory: memory.map(RowMemory::bytes),
        outputs: vec![],
    })
}

/// What each latent fires on, as JSON.
#[pyfunction(name = "features")]
fn features_of(
    py: Python<'_>,
    model: PathBuf,
    data: Data,
    asked: Asked,
    options: Texts,
    device: &str,
) -> PyResult<String> {
    let request = asked_of(asked, source(model, data, options, device)?)?;
    worker::run(py, false, None, |stop, _| {
        let found = features(&request, stop)?;
        found.warnings().iter().for_each(console::warn);
        json(&found)
    })
}

/// Writes the page of a run; its place.
#[pyfunction(name = "report")]
#[allow(clippy::too_many_arguments)]
fn report_of(
    py: Python<'_>,
    run: PathBuf,
    data: Data,
    asked: Asked,
    shown: usize,
    out: Option<PathBuf>,
    overwrite: bool,
    options: Texts,
    device: &str,
) -> PyResult<PathBuf> {
    let features = asked_of(asked, source(run, data, options, device)?)?;
    let request = ReportRequest { features, shown, out, overwrite };
    worker::run(py, false, None, |stop, _| {
        let done = report(&request, stop)?;
        done.features.warnings().iter().for_each(console::warn);
        Ok(done.path)
    })
}

/// The command line; its exit status.
#[pyfunction(name = "console")]
fn command_line(py: Python<'_>, args: Vec<OsString>) -> u8 {
    py.detach(|| topk_sae::cli::main(args))
}

/// The engine of `topk_sae`.
#[pymodule]
fn _engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    errors::register(module)?;
    module.add_class::<Model>()?;
    module.add_class::<Rows>()?;
    module.add_function(wrap_pyfunction!(train, module)?)?;
    module.add_function(wrap_pyfunction!(evaluate, module)?)?;
    module.add_function(wrap_pyfunction!(features_of, module)?)?;
    module.add_function(wrap_pyfunction!(report_of, module)?)?;
    module.add_function(wrap_pyfunction!(track::track_of, module)?)?;
    module.add_function(wrap_pyfunction!(track::colour, module)?)?;
    module.add_function(wrap_pyfunction!(command_line, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
