//! Errors of the engine as exceptions of Python, each with the line that the command prints.

use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use topk_sae::error::Error;

pyo3::create_exception!(topk_sae, DataError, PyValueError, "Embeddings or labels that cannot be used.");
pyo3::create_exception!(
    topk_sae,
    UsageError,
    PyValueError,
    "Arguments that cannot be used, alone or together."
);
pyo3::create_exception!(topk_sae, ModelError, PyValueError, "A file that is no model, or is damaged.");

/// The exception for `error`.
pub fn raised(error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Data { .. } => DataError::new_err(text),
        Error::Usage(_) => UsageError::new_err(text),
        Error::Model { .. } | Error::Newer { .. } => ModelError::new_err(text),
        Error::Io { source, .. } => {
            // With the number Python makes the subclass, such as FileNotFoundError, whose text has the number before ours.
            match source.raw_os_error() {
                Some(number) => PyOSError::new_err((number, text)),
                None => PyOSError::new_err(text),
            }
        }
        Error::Interrupted(_) => PyKeyboardInterrupt::new_err(text),
        _ => PyRuntimeError::new_err(text),
    }
}

/// Adds the exceptions to `module`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("DataError", py.get_type::<DataError>())?;
    module.add("UsageError", py.get_type::<UsageError>())?;
    module.add("ModelError", py.get_type::<ModelError>())
}
