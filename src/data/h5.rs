//! A thin, checked layer over the HDF5 library: open, list, read bytes.
//!
//! Every call into the library runs under its lock (`sync`), which also keeps the library from
//! printing its own error stack. Values are read without conversion and turned afterwards: HDF5's
//! float16 conversion is twenty times slower than `half`'s.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

use hdf5::file::SizeofInfo;
use hdf5::sync::sync;
use hdf5_sys::{h5d, h5f, h5g, h5i, h5l, h5o, h5p, h5s, h5t};

use super::advice::{missing_filter, unreadable};
use super::attributes::texts_of;
use super::file::{Dataset, File, Kind, Place, Store};
use super::kind::Stored;
use super::view::View;
use super::{header, heap};
use crate::error::{Error, Result};
use crate::rows::Dtype;

const UNDEFINED: u64 = u64::MAX;

/// One name in a group.
pub(super) struct Link {
    pub name: String,
    /// The object's address; `None` for soft and external links.
    pub address: Option<u64>,
}

/// An identifier of the library, released when dropped.
pub(super) struct Id(pub(super) i64);

impl Id {
    pub fn new(id: i64) -> hdf5::Result<Self> {
        hdf5::h5check(id).map(Self)
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: the id came from the library and is released once, here.
        sync(|| unsafe { h5i::H5Idec_ref(self.0) });
    }
}

/// The library's answer in one short line.
pub(crate) fn brief(error: &hdf5::Error) -> String {
    let text = match error.stack() {
        Some(stack) => match stack.last() {
            Some(frame) => frame.desc().to_owned(),
            None => "no reason given".to_owned(),
        },
        None => error.to_string(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A name of the open file `file` for the library's binding, which takes UTF-8 alone: `path` if it is that.
pub(crate) fn library_name(path: &Path, file: &std::fs::File) -> PathBuf {
    match path.to_str() {
        Some(_) => path.to_owned(),
        None => PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
    }
}

/// Opens `path` with the library.
pub(super) fn open(path: &Path, raw: &std::fs::File, len: u64) -> Result<Store> {
    let hdf = hdf5::File::open(library_name(path, raw)).map_err(|error| {
        let why = brief(&error);
        let what = if super::signature::is_member_of_family(raw) {
            "is the first member of a family of files, which HDF5's family driver wrote; make it one file with `h5repart -m 0 NAME%05d.h5 whole.h5`, where %05d stands for the members' numbers"
                .to_owned()
        } else if why.contains("truncated file") {
            format!("the file is cut short at {len} bytes; download or copy it again")
        } else if why.contains("lock") {
            "another program has it open for writing; wait for that program to finish".to_owned()
        } else {
            format!("HDF5 cannot open it ({}", unreadable(&error))
        };
        Error::data(path, "", what)
    })?;
    let plain = hdf.create_plist().is_ok_and(|list| {
        let sizes = list.sizes();
        // The default is eight bytes for both.
        list.userblock() == 0 && sizes == SizeofInfo::default()
    });
    let number = object(&hdf, "").map_or(0, |((number, _), _)| number);
    Ok(Store::Hdf5 { hdf, plain, number })
}

impl File {
    /// A damaged-file error at `place`.
    pub fn damaged(&self, place: &str, error: &hdf5::Error) -> Error {
        Error::data(&self.path, place, format!("HDF5 cannot read it ({}", unreadable(error)))
    }

    /// The error for a dataset whose values cannot be read.
    pub fn damaged_values(&self, dataset: &str, error: &hdf5::Error) -> Error {
        let place = format!("dataset \"/{dataset}\"");
        match missing_filter(self, dataset) {
            Some(what) => Error::data(&self.path, place, what),
            None => self.damaged(&place, error),
        }
    }

    /// The names in `group` ("" is the root), in no particular order.
    pub fn links(&self, group: &str) -> Result<Vec<Link>> {
        let Some(hdf) = self.hdf() else { return Ok(vec![]) };
        let names = sync(|| {
            let group = open_group(hdf, group)?;
            let mut found: Vec<(CString, Option<u64>)> = Vec::new();
            #[allow(deprecated)] // The newer call is not in HDF5 1.10.
            // SAFETY: `collect` gets back the vector given here, which outlives the call.
            let code = unsafe {
                h5l::H5Literate1(
                    group.0,
                    hdf5_sys::h5::H5_INDEX_NAME,
                    hdf5_sys::h5::H5_ITER_NATIVE,
                    null_mut(),
                    Some(collect),
                    (&raw mut found).cast(),
                )
            };
            hdf5::h5check(code).map(|_| found)
        })
        .map_err(|error| self.damaged(&format!("group \"/{group}\""), &error))?;
        names
            .into_iter()
            .map(|(name, address)| match name.into_string() {
                Ok(name) => Ok(Link { name, address }),
                Err(bad) => Err(Error::data(
                    &self.path,
                    format!("group \"/{group}\""),
                    format!("the name {:?} is not UTF-8; rename it", bad.into_cstring().to_string_lossy()),
                )),
            })
            .collect()
    }

    /// Opens the object at `path`: a dataset, or `None` for a group and anything else.
    /// `own` says that it is known to lie in this very file, so that offsets are good.
    pub fn describe(&self, path: &str, own: bool) -> Result<Option<Dataset>> {
        let described = sync(|| {
            let object = self.open_object(path)?;
            // SAFETY: a live id.
            match unsafe { h5i::H5Iget_type(object.0) } {
                h5i::H5I_type_t::H5I_DATASET => describe_open(&object, path, own),
                _ => Ok(None),
            }
        });
        described.map_err(|error| self.damaged(&format!("dataset \"/{path}\""), &error))
    }

    /// [`File::read_rows`] through the library.
    pub(super) fn read_slab(
        &self,
        dataset: &Dataset,
        view: &View,
        rows: Range<u64>,
        size: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let mut start: Vec<u64> = (0..dataset.shape.len()).map(|axis| view.at(axis)).collect();
        let mut count = vec![1; start.len()];
        (start[view.columns], count[view.columns]) = (0, view.width(&dataset.shape));
        if let Some(axis) = view.rows {
            (start[axis], count[axis]) = (rows.start, rows.end - rows.start);
        }
        let read = sync(|| {
            let object = self.open_object(&dataset.path)?;
            // SAFETY: live ids; the slab has as many axes as the dataset, which is checked; `out` is as long as the
            // values selected, which is checked just before.
            unsafe {
                let kind = Id::new(h5d::H5Dget_type(object.0))?;
                let space = Id::new(h5d::H5Dget_space(object.0))?;
                if h5s::H5Sget_simple_extent_ndims(space.0) as usize != start.len() {
                    return Err(hdf5::Error::from("its shape changed while reading"));
                }
                hdf5::h5check(h5s::H5Sselect_hyperslab(
                    space.0,
                    h5s::H5S_seloper_t::H5S_SELECT_SET,
                    start.as_ptr(),
                    std::ptr::null(),
                    count.as_ptr(),
                    std::ptr::null(),
                ))?;
                let n = h5s::H5Sget_select_npoints(space.0);
                let unit = h5t::H5Tget_size(kind.0);
                let needed = usize::try_from(n).ok().and_then(|n| n.checked_mul(unit));
                // The slab may not reach past the dataset's end: it may have shrunk since it was described.
                if h5s::H5Sselect_valid(space.0) <= 0 || unit != size || needed != Some(out.len()) {
                    return Err(hdf5::Error::from("its shape changed while reading"));
                }
                // In memory the rows have the shape that they have in the file: the library is several times slower
                // where shapes differ, because it then goes element by element.
                let memory = h5s::H5Screate_simple(count.len() as i32, count.as_ptr(), std::ptr::null());
                let memory = Id::new(memory)?;
                hdf5::h5check(h5d::H5Dread(
                    object.0,
                    kind.0,
                    memory.0,
                    space.0,
                    hdf5_sys::h5p::H5P_DEFAULT,
                    out.as_mut_ptr().cast(),
                ))
                .map(|_| ())
            }
        });
        read.map_err(|error| self.damaged_values(&dataset.path, &error))
    }

    /// File and address of the object at `path`, by which two names of one object are known; `None` where nothing is there.
    pub fn identity(&self, path: &str) -> Option<(u64, u64)> {
        self.object(path).map(|(identity, _)| identity)
    }

    /// [`File::identity`] of the object at `path`, and whether it is a group.
    pub fn object(&self, path: &str) -> Option<((u64, u64), bool)> {
        object(self.hdf()?, path)
    }

    /// Opens the object at `path`; the library's lock is held. An object whose header refers to a damaged heap is refused,
    /// because HDF5 1.10 hangs on one.
    pub(super) fn open_object(&self, path: &str) -> hdf5::Result<Id> {
        let Store::Hdf5 { hdf, plain, number } = &self.store else { return Err("it is no HDF5 file".into()) };
        if *plain
            && let Some(((file, address), _)) = object(hdf, path)
            && file == *number
            && !heap::are_sound(self, &header::references(self, address))
        {
            return Err("a heap of its texts or parts is damaged".into());
        }
        let name = c_path(path)?;
        // SAFETY: a live file id and a string that ends in NUL.
        Id::new(unsafe { h5o::H5Oopen(hdf.id(), name.as_ptr(), hdf5_sys::h5p::H5P_DEFAULT) })
    }

    /// Whether the group at `path` lies in this very file, not in one that an external link names.
    pub fn is_own(&self, path: &str) -> bool {
        let Some(hdf) = self.hdf() else { return false };
        sync(|| {
            let Ok(group) = open_group(hdf, path) else {
                return false;
            };
            let name = |id: i64| {
                let mut name = vec![0u8; 4096];
                // SAFETY: a live id; the library writes at most `name.len()` bytes.
                let n = unsafe { h5f::H5Fget_name(id, name.as_mut_ptr().cast(), name.len()) };
                (n > 0).then_some(name)
            };
            let (own, other) = (name(hdf.id()), name(group.0));
            own.is_some() && own == other
        })
    }
}

/// Called by the library for each link; `data` is the vector to append to.
unsafe extern "C" fn collect(
    _: i64,
    name: *const c_char,
    info: *const h5l::H5L_info1_t,
    data: *mut c_void,
) -> i32 {
    // SAFETY: the library passes a name that ends in NUL, a filled record, and our vector.
    unsafe {
        let found = &mut *data.cast::<Vec<(CString, Option<u64>)>>();
        let hard = (*info).type_ == h5l::H5L_TYPE_HARD;
        let mut target = (*info).u;
        let address = hard.then(|| *target.address());
        found.push((CStr::from_ptr(name).to_owned(), address));
    }
    0
}

fn c_path(path: &str) -> hdf5::Result<CString> {
    CString::new(format!("/{path}")).map_err(|_| hdf5::Error::from("its name holds a NUL"))
}

/// File and address of the object at `path`, and whether it is a group.
fn object(file: &hdf5::File, path: &str) -> Option<((u64, u64), bool)> {
    let name = c_path(path).ok()?;
    let mut info = h5o::H5O_info1_t::default();
    #[allow(deprecated)] // The newer call is not in HDF5 1.10.
    // SAFETY: a live file id, a string that ends in NUL, and a record to fill. No more is asked for than the address: for
    // sizes the library would read heaps.
    let code = sync(|| unsafe {
        let list = hdf5_sys::h5p::H5P_DEFAULT;
        h5o::H5Oget_info_by_name2(file.id(), name.as_ptr(), &mut info, h5o::H5O_INFO_BASIC, list)
    });
    (code >= 0).then_some(((info.fileno, info.addr), info.type_ == h5o::H5O_type_t::H5O_TYPE_GROUP))
}

fn open_group(file: &hdf5::File, path: &str) -> hdf5::Result<Id> {
    let name = c_path(path)?;
    // SAFETY: a live file id and a string that ends in NUL.
    Id::new(unsafe { h5g::H5Gopen2(file.id(), name.as_ptr(), hdf5_sys::h5p::H5P_DEFAULT) })
}

fn describe_open(object: &Id, path: &str, own: bool) -> hdf5::Result<Option<Dataset>> {
    // SAFETY: live ids; `shape` has room for the rank that the library just gave.
    unsafe {
        let space = Id::new(h5d::H5Dget_space(object.0))?;
        let rank = h5s::H5Sget_simple_extent_ndims(space.0);
        let mut shape = vec![0u64; usize::try_from(rank).unwrap_or(0)];
        hdf5::h5check(h5s::H5Sget_simple_extent_dims(space.0, shape.as_mut_ptr(), null_mut()))?;
        let kind = Id::new(h5d::H5Dget_type(object.0))?;
        let offset = h5d::H5Dget_offset(object.0);
        let list = Id::new(h5d::H5Dget_create_plist(object.0))?;
        let needed = shape.iter().try_fold(h5t::H5Tget_size(kind.0) as u64, |n, &len| n.checked_mul(len));
        // The library copies values out of the header without checking that they are all there.
        if h5p::H5Pget_layout(list.0) == h5d::H5D_layout_t::H5D_COMPACT
            && needed.is_none_or(|needed| needed > h5d::H5Dget_storage_size(object.0))
        {
            return Err("its values are cut short".into());
        }
        Ok(Some(Dataset {
            path: path.to_owned(),
            shape,
            kind: kind_of(object, &kind),
            place: if own && offset != UNDEFINED { Place::At(offset) } else { Place::Library },
        }))
    }
}

/// What the open dataset `object` of type `id` holds.
fn kind_of(object: &Id, id: &Id) -> Kind {
    // SAFETY: a live id of a datatype.
    let (class, size, order) = unsafe {
        let class = h5t::H5Tget_class(id.0);
        // An opaque type has no order; what writes bfloat16 as one leaves it as it is in memory.
        (class, h5t::H5Tget_size(id.0), h5t::H5Tget_order(id.0))
    };
    let stored = |dtype| Kind::Float(Stored { dtype, big_endian: order == h5t::H5T_order_t::H5T_ORDER_BE });
    match class {
        h5t::H5T_class_t::H5T_FLOAT => match (float_format(id), order) {
            (Some(dtype), h5t::H5T_order_t::H5T_ORDER_LE | h5t::H5T_order_t::H5T_ORDER_BE) => stored(dtype),
            _ => Kind::OddFloat(format!("floats of {size} bytes in an unusual format")),
        },
        h5t::H5T_class_t::H5T_STRING => Kind::Text,
        h5t::H5T_class_t::H5T_INTEGER if size == 2 && says_bfloat16(object) => stored(Dtype::Bf16),
        h5t::H5T_class_t::H5T_INTEGER => Kind::Integer { size },
        h5t::H5T_class_t::H5T_COMPOUND => Kind::Other("compound records"),
        h5t::H5T_class_t::H5T_OPAQUE if size == 2 && tag_of(id).contains("bfloat16") => stored(Dtype::Bf16),
        h5t::H5T_class_t::H5T_OPAQUE if size == 2 && says_bfloat16(object) => stored(Dtype::Bf16),
        h5t::H5T_class_t::H5T_OPAQUE if size == 2 => Kind::Opaque16,
        h5t::H5T_class_t::H5T_VLEN => Kind::Other("lists of different lengths"),
        _ => Kind::Other("values that are not numbers"),
    }
}

/// Which of the four formats the fields of a float type spell, if any.
fn float_format(id: &Id) -> Option<Dtype> {
    let (mut sign, mut exp, mut exp_bits, mut man, mut man_bits) = (0, 0, 0, 0, 0);
    // SAFETY: a live id of a float type and five places to write to.
    let (code, bias, size) = unsafe {
        let code = h5t::H5Tget_fields(id.0, &mut sign, &mut exp, &mut exp_bits, &mut man, &mut man_bits);
        (code, h5t::H5Tget_ebias(id.0), h5t::H5Tget_size(id.0))
    };
    if code < 0 {
        return None;
    }
    match (size, sign, exp, exp_bits, man, man_bits, bias) {
        (2, 15, 10, 5, 0, 10, 15) => Some(Dtype::F16),
        (2, 15, 7, 8, 0, 7, 127) => Some(Dtype::Bf16),
        (4, 31, 23, 8, 0, 23, 127) => Some(Dtype::F32),
        (8, 63, 52, 11, 0, 52, 1023) => Some(Dtype::F64),
        _ => None,
    }
}

/// The tag of an opaque type.
fn tag_of(id: &Id) -> String {
    // SAFETY: a live id of an opaque type; the library gives a string that ends in NUL and is freed by its own call.
    unsafe {
        let tag = h5t::H5Tget_tag(id.0);
        if tag.is_null() {
            return String::new();
        }
        let text = CStr::from_ptr(tag).to_string_lossy().into_owned();
        hdf5_sys::h5::H5free_memory(tag.cast());
        text
    }
}

/// HDF5 files made by numpy have no bfloat16; its bits go into uint16 and an attribute says so.
fn says_bfloat16(object: &Id) -> bool {
    let names = [c"dtype", c"original_dtype", c"torch_dtype", c"stored_dtype", c"type"];
    let texts = names.iter().filter_map(|name| texts_of(object, name).ok()?).flatten();
    texts.into_iter().any(|text| text.ends_with(b"bfloat16") || text.ends_with(b"bf16"))
}

/// How the values of a dataset are stored, for people.
pub(super) fn storage(file: &hdf5::File, path: &str) -> String {
    let Ok(dataset) = file.dataset(path) else {
        return String::new();
    };
    let mut text = match dataset.chunk() {
        Some(chunk) => {
            let axes: Vec<String> = chunk.iter().map(usize::to_string).collect();
            format!("chunked ({})", axes.join(", "))
        }
        None if dataset.offset().is_some() => "contiguous".to_owned(),
        None => "compact, external or virtual".to_owned(),
    };
    for filter in dataset.filters() {
        text.push_str(match filter {
            hdf5::filters::Filter::Deflate(_) => ", gzip",
            hdf5::filters::Filter::Shuffle => ", shuffle",
            hdf5::filters::Filter::Fletcher32 => ", checksum",
            _ => ", filtered",
        });
    }
    text
}
