//! String datasets, of fixed and of variable length.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;

use hdf5::sync::sync;
use hdf5_sys::{h5d, h5s, h5t};

use super::file::{Dataset, File, Place};
use super::h5::Id;
use super::heap;
use crate::error::Result;

const TOO_LARGE: &str = "it claims more than the memory holds";

impl File {
    /// [`File::read_integers`] through the library.
    pub(super) fn read_integers_of(&self, dataset: &Dataset) -> Result<Vec<i64>> {
        let n = dataset.shape.iter().product::<u64>() as usize;
        let mut values = Vec::<i64>::new();
        let read = sync(|| {
            values.try_reserve_exact(n).map_err(|_| TOO_LARGE)?;
            values.resize(n, 0);
            let object = self.open_object(&dataset.path)?;
            // SAFETY: a type of the library that is never closed.
            let kind = unsafe { Id::new(h5t::H5Tcopy(*h5t::H5T_NATIVE_INT64))? };
            read_all(&object, &kind, n, values.as_mut_ptr().cast())
        });
        read.map_err(|error| self.damaged_values(&dataset.path, &error))?;
        Ok(values)
    }

    /// Reads one field of a dataset of compound records as texts, integers in decimal; `None` where there is no such field
    /// of texts or integers.
    pub fn read_field(&self, dataset: &Dataset, field: &str) -> Result<Option<Vec<Vec<u8>>>> {
        let n = dataset.shape.iter().product::<u64>() as usize;
        let (Some(_), Ok(name)) = (self.hdf(), std::ffi::CString::new(field)) else { return Ok(None) };
        let read = sync(|| {
            let object = self.open_object(&dataset.path)?;
            // SAFETY: live ids and a string that ends in NUL; the memory type has the one field, at its start.
            let (member, record) = unsafe {
                let kind = Id::new(h5d::H5Dget_type(object.0))?;
                let at = h5t::H5Tget_member_index(kind.0, name.as_ptr());
                let Ok(at) = u32::try_from(at) else { return Ok(None) };
                let mut member = Id::new(h5t::H5Tget_member_type(kind.0, at))?;
                if h5t::H5Tget_class(member.0) == h5t::H5T_class_t::H5T_INTEGER {
                    member = Id::new(h5t::H5Tcopy(*h5t::H5T_NATIVE_INT64))?;
                }
                let record =
                    Id::new(h5t::H5Tcreate(h5t::H5T_class_t::H5T_COMPOUND, h5t::H5Tget_size(member.0)))?;
                hdf5::h5check(h5t::H5Tinsert(record.0, name.as_ptr(), 0, member.0))?;
                (member, record)
            };
            // SAFETY: a live id.
            let (class, size) = unsafe { (h5t::H5Tget_class(member.0), h5t::H5Tget_size(member.0)) };
            match class {
                h5t::H5T_class_t::H5T_STRING => {
                    // SAFETY: a live id.
                    let variable = unsafe { h5t::H5Tis_variable_str(member.0) > 0 };
                    let read = if variable {
                        read_variable(&object, &record, n)?
                    } else {
                        read_fixed(&object, &record, n, size)?
                    };
                    Ok(Some(read))
                }
                h5t::H5T_class_t::H5T_INTEGER => {
                    let mut values = Vec::<i64>::new();
                    values.try_reserve_exact(n).map_err(|_| TOO_LARGE)?;
                    values.resize(n, 0);
                    read_all(&object, &record, n, values.as_mut_ptr().cast())?;
                    Ok(Some(values.iter().map(|value| value.to_string().into_bytes()).collect()))
                }
                _ => Ok(None),
            }
        });
        read.map_err(|error: hdf5::Error| self.damaged_values(&dataset.path, &error))
    }

    /// [`File::read_strings`] through the library: of fixed or of variable length.
    pub(super) fn read_strings_of(&self, dataset: &Dataset) -> Result<Vec<Vec<u8>>> {
        let n = dataset.shape.iter().product::<u64>() as usize;
        let read = sync(|| {
            let object = self.open_object(&dataset.path)?;
            // SAFETY: live ids.
            let (kind, variable, size) = unsafe {
                let kind = Id::new(h5d::H5Dget_type(object.0))?;
                let variable = h5t::H5Tis_variable_str(kind.0) > 0;
                let size = h5t::H5Tget_size(kind.0);
                (kind, variable, size)
            };
            if let (true, true, Place::At(offset)) = (variable, self.is_plain(), dataset.place) {
                heap::strings(self, offset, n).ok_or("its strings are damaged".into())
            } else if variable {
                read_variable(&object, &kind, n)
            } else {
                read_fixed(&object, &kind, n, size)
            }
        });
        read.map_err(|error| self.damaged_values(&dataset.path, &error))
    }
}

fn read_fixed(object: &Id, kind: &Id, n: usize, size: usize) -> hdf5::Result<Vec<Vec<u8>>> {
    let bytes = n.checked_mul(size).filter(|_| size > 0);
    let mut values = zeroed(bytes.ok_or("its strings have no length")?)?;
    read_all(object, kind, n, values.as_mut_ptr().cast())?;
    Ok(fixed_texts(&values, size))
}

fn read_variable(object: &Id, kind: &Id, n: usize) -> hdf5::Result<Vec<Vec<u8>>> {
    let mut values: Vec<*mut c_char> = Vec::new();
    values.try_reserve_exact(n).map_err(|_| TOO_LARGE)?;
    values.resize(n, null_mut());
    read_all(object, kind, n, values.as_mut_ptr().cast())?;
    let texts = variable_texts(&values);
    #[allow(deprecated)] // The newer call is not in HDF5 1.10.
    // SAFETY: the strings that the read above allocated are given back once.
    unsafe {
        let space = Id::new(h5d::H5Dget_space(object.0))?;
        let list = hdf5_sys::h5p::H5P_DEFAULT;
        h5d::H5Dvlen_reclaim(kind.0, space.0, list, values.as_mut_ptr().cast());
    }
    Ok(texts)
}

/// Texts of `size` bytes each, without the zeros and blanks at their ends.
pub(super) fn fixed_texts(values: &[u8], size: usize) -> Vec<Vec<u8>> {
    let text = |value: &[u8]| {
        let end = value.iter().position(|&b| b == 0).unwrap_or(size);
        value[..end].trim_ascii_end().to_vec()
    };
    values.chunks_exact(size.max(1)).map(text).collect()
}

/// Copies of the strings that the library allocated.
pub(super) fn variable_texts(values: &[*mut c_char]) -> Vec<Vec<u8>> {
    let text = |&value: &*mut c_char| {
        if value.is_null() {
            return Vec::new();
        }
        // SAFETY: a string that the library allocated and ended with NUL.
        unsafe { CStr::from_ptr(value) }.to_bytes().to_vec()
    };
    values.iter().map(text).collect()
}

fn read_all(object: &Id, kind: &Id, n: usize, out: *mut c_void) -> hdf5::Result<()> {
    // SAFETY: live ids; the caller sized `out` for `n` values and the count is checked here.
    unsafe {
        let space = Id::new(h5d::H5Dget_space(object.0))?;
        if h5s::H5Sget_simple_extent_npoints(space.0) != n as i64 {
            return Err("its shape changed while reading".into());
        }
        let (all, list) = (h5s::H5S_ALL, hdf5_sys::h5p::H5P_DEFAULT);
        hdf5::h5check(h5d::H5Dread(object.0, kind.0, all, all, list, out)).map(|_| ())
    }
}

fn zeroed(bytes: usize) -> hdf5::Result<Vec<u8>> {
    let mut values = Vec::new();
    values.try_reserve_exact(bytes).map_err(|_| TOO_LARGE)?;
    values.resize(bytes, 0);
    Ok(values)
}
