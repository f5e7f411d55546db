//! Attributes that say what a file is.

use std::ffi::{CStr, CString, c_char};
use std::ptr::null_mut;

use hdf5::sync::sync;
use hdf5_sys::{h5a, h5d, h5s, h5t};

use super::file::File;
use super::h5::Id;
use super::text::{fixed_texts, variable_texts};
use crate::error::Result;

/// Most bytes of an attribute that is read; larger ones are not what says how to read a file.
const MOST: usize = 1 << 28;

impl File {
    /// The texts of the attribute `name` of the object at `path` ("" is the root): one for a scalar. `None` where there is
    /// none, or it is no text.
    ///
    /// # Errors
    /// The object or the attribute is damaged.
    pub fn texts_of_attribute(&self, path: &str, name: &str) -> Result<Option<Vec<String>>> {
        let (Some(_), Ok(c_name)) = (self.hdf(), CString::new(name)) else { return Ok(None) };
        let texts = sync(|| texts_of(&self.open_object(path)?, &c_name));
        let texts =
            texts.map_err(|error| self.damaged(&format!("attribute \"{name}\" of \"/{path}\""), &error))?;
        Ok(texts.and_then(|texts| texts.into_iter().map(|text| String::from_utf8(text).ok()).collect()))
    }

    /// The same for an attribute that is one text.
    ///
    /// # Errors
    /// As [`File::texts_of_attribute`].
    pub fn text_of_attribute(&self, path: &str, name: &str) -> Result<Option<String>> {
        let texts = self.texts_of_attribute(path, name)?;
        Ok(texts.and_then(|mut texts| if texts.len() == 1 { texts.pop() } else { None }))
    }

    /// Whether the object at `path` has the attribute `name`, whatever it holds.
    pub fn has_attribute(&self, path: &str, name: &str) -> bool {
        let Ok(name) = CString::new(name) else { return false };
        sync(|| {
            // SAFETY: a live id and a string that ends in NUL.
            self.open_object(path).is_ok_and(|object| unsafe { h5a::H5Aexists(object.0, name.as_ptr()) > 0 })
        })
    }
}

/// The texts of an attribute of an open object; the library's lock is held.
pub(super) fn texts_of(object: &Id, name: &CStr) -> hdf5::Result<Option<Vec<Vec<u8>>>> {
    // SAFETY: live ids, and a string that ends in NUL.
    let (attribute, kind, space, n) = unsafe {
        if h5a::H5Aexists(object.0, name.as_ptr()) <= 0 {
            return Ok(None);
        }
        let attribute = Id::new(h5a::H5Aopen(object.0, name.as_ptr(), hdf5_sys::h5p::H5P_DEFAULT))?;
        let kind = Id::new(h5a::H5Aget_type(attribute.0))?;
        let space = Id::new(h5a::H5Aget_space(attribute.0))?;
        if h5t::H5Tget_class(kind.0) != h5t::H5T_class_t::H5T_STRING {
            return Ok(None);
        }
        let n = usize::try_from(h5s::H5Sget_simple_extent_npoints(space.0)).unwrap_or(usize::MAX);
        (attribute, kind, space, n)
    };
    // SAFETY: a live id of a string type.
    let (variable, size) = unsafe { (h5t::H5Tis_variable_str(kind.0) > 0, h5t::H5Tget_size(kind.0)) };
    let bytes = n.checked_mul(size.max(size_of::<*mut c_char>())).filter(|&bytes| bytes <= MOST);
    let Some(bytes) = bytes else { return Ok(None) };
    if n == 0 {
        return Ok(Some(vec![]));
    }
    if !variable {
        let mut values = vec![0u8; bytes];
        // SAFETY: `values` has room for `n` strings of `size` bytes.
        hdf5::h5check(unsafe { h5a::H5Aread(attribute.0, kind.0, values.as_mut_ptr().cast()) })?;
        values.truncate(n * size);
        return Ok(Some(fixed_texts(&values, size)));
    }
    let mut values: Vec<*mut c_char> = vec![null_mut(); n];
    // SAFETY: `values` has room for `n` pointers.
    hdf5::h5check(unsafe { h5a::H5Aread(attribute.0, kind.0, values.as_mut_ptr().cast()) })?;
    let texts = variable_texts(&values);
    #[allow(deprecated)] // The newer call is not in HDF5 1.10.
    // SAFETY: the strings that the read above allocated are given back once.
    unsafe {
        h5d::H5Dvlen_reclaim(kind.0, space.0, hdf5_sys::h5p::H5P_DEFAULT, values.as_mut_ptr().cast());
    }
    Ok(Some(texts))
}
