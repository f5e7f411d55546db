//! Arrays of NumPy as rows, read in place.

use crate::errors::{DataError, UsageError};
use half::f16;
use numpy::{Element, PyArray2, PyArrayDescrMethods, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use std::sync::Arc;
use topk_sae::rows::{Store, Values};

/// The memory of an array (N, D), which it keeps alive.
struct Lent<T> {
    _owner: Py<PyAny>,
    start: *const T,
    len: usize,
}

// SAFETY: the memory is only read, and `_owner`, whose count changes under the interpreter's lock alone, keeps it alive.
unsafe impl<T: Sync> Send for Lent<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Lent<T> {}

impl<T> AsRef<[T]> for Lent<T> {
    fn as_ref(&self) -> &[T] {
        // SAFETY: `lend` checked that `len` aligned values lie at `start` one after another, and the array cannot be
        // resized while `_owner` refers to it. The documentation asks callers not to write to it meanwhile.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

/// Values and width of an array (N, D) of float16, float32 or float64, without a copy.
pub fn lend(array: &Bound<'_, PyAny>) -> PyResult<(Values, usize)> {
    let Ok(untyped) = array.cast::<PyUntypedArray>() else {
        return Err(UsageError::new_err("rows must be an array of NumPy; give numpy.asarray(x)"));
    };
    let (shape, dtype) = (untyped.shape(), untyped.dtype());
    let &[n, d] = shape else {
        return Err(DataError::new_err(format!(
            "the array has the shape {shape:?}, and rows are (N, D); give x.reshape(-1, D)"
        )));
    };
    if n == 0 || d == 0 {
        return Err(DataError::new_err(format!(
            "the array ({n}, {d}) has no values; give embeddings (N, D)"
        )));
    }
    if !untyped.is_c_contiguous() {
        return Err(DataError::new_err(
            "the rows of the array do not lie one after another in memory; give numpy.ascontiguousarray(x)",
        ));
    }
    let values = if let Ok(array) = array.cast::<PyArray2<f32>>() {
        in_place(array).map(Values::F32)
    } else if let Ok(array) = array.cast::<PyArray2<f64>>() {
        in_place(array).map(Values::F64)
    } else if let Ok(array) = array.cast::<PyArray2<f16>>() {
        in_place(array).map(Values::F16)
    } else {
        return Err(DataError::new_err(format!(
            "the array is of {} in the byte order '{}'; give x.astype(numpy.float32)",
            dtype,
            dtype.byteorder() as char
        )));
    };
    let not_aligned = "the array's values are not aligned in memory; give x.copy()";
    Ok((values.ok_or_else(|| DataError::new_err(not_aligned))?, d))
}

fn in_place<T: Element + Send + Sync + 'static>(array: &Bound<'_, PyArray2<T>>) -> Option<Store<T>> {
    let (start, len) = (array.data().cast_const(), array.len());
    let lent = Lent { _owner: array.clone().into_any().unbind(), start, len };
    start.is_aligned().then(|| Store::Lent(Arc::new(lent)))
}
