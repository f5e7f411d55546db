//! Files that cannot be used: one line that names file, dataset, row and what to do next.
#![allow(clippy::unwrap_used)] // Tests stop at what they do not expect.

mod data_fixtures;

use std::path::Path;

use data_fixtures::*;
use topk_sae::data::{Embeddings, LoadOptions};

fn written(folder: &Folder, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.path(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn no_files_at_all_is_wrong_usage() {
    let error = Embeddings::load(&[], &LoadOptions::default()).unwrap_err();
    assert_eq!(error.exit_status(), 2);
}

#[test]
fn files_of_another_kind_are_named_with_the_way_out() {
    let folder = Folder::new();
    let missing = folder.path("missing.h5");
    message(load(&[&missing]), &missing, &["cannot open", "check the path"]);
    let dir = folder.path("dir.h5");
    std::fs::create_dir(&dir).unwrap();
    message(load(&[&dir]), &dir, &["holds no data files"]);
    std::fs::write(dir.join("zarr.json"), "{}").unwrap();
    message(load(&[&dir]), &dir, &["is a Zarr folder", "zarr.open"]);
    let cases: [(&[u8], &str); 16] = [
        (b"", "is empty (0 bytes); download"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0\0\0", "gunzip"),
        (b"PK\x03\x04 and more of it", "zip file"),
        (b"\x93NUMPY\x01\0 and more", "damaged .npy header"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b">sp|P12345\nMAGICAL", "FASTA"),
        (b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05\0\0\0x.npy and more", ".npz archive"),
        (b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05\0\0\0a/data.pkl", "torch.load"),
        (b"\x40\0\0\0\0\0\0\0{\"x\":{\"dtype\":\"F32\"}}", "damaged .safetensors header"),
        (b"PAR1 and columns", "Parquet"),
        (b"\x80\x02\x8a and more of a pickle", "pickle"),
        (b"id,x,y\nP1,0.1,0.2\n", "a table of text"),
        (b"\x01\x02\x03 no file of any kind", "neither HDF5"),
        (b"\x89HDF", "cut short at 4 bytes"),
        (&[0; 4096], "zeros only"),
    ];
    for (i, (bytes, part)) in cases.into_iter().enumerate() {
        let path = written(&folder, &format!("{i}.h5"), bytes);
        message(load(&[&path]), &path, &[part]);
    }
}

#[test]
fn a_file_of_a_newer_hdf5_says_so() {
    let folder = Folder::new();
    let path = folder.file("new.h5", |file| matrix(file, "x", 0, 40, 16, false, |v| v));
    // The version of the layout message: then follow its class (contiguous), an address, and the size.
    let mut bytes = std::fs::read(&path).unwrap();
    let size = (40u64 * 16 * 4).to_le_bytes();
    let layout = |w: &[u8]| matches!(w[..2], [3 | 4, 1]) && w[10..18] == size;
    let at = bytes.windows(18).position(layout).unwrap();
    bytes[at] = 5;
    std::fs::write(&path, bytes).unwrap();
    message(load(&[&path]), &path, &["\"/x\"", "newer HDF5", "h5repack", "v110"]);
}

#[test]
fn a_filter_that_is_not_there_is_named() {
    let folder = Folder::new();
    for (id, word) in [(32001, "32001, blosc"), (40123, "40123")] {
        let path = folder.file("filter.h5", |file| filtered(file, "x", id));
        message(load(&[&path]), &path, &["\"/x\"", word, "gzip"]);
    }
}

#[test]
fn files_without_rows_say_so() {
    let folder = Folder::new();
    let empty = folder.file("empty.h5", |_| {});
    message(load(&[&empty]), &empty, &["holds no datasets"]);
    let ints = folder.file("ints.h5", |file| vector(file, "counts", 0, 3, |v| v as i32));
    message(load(&[&ints]), &ints, &["\"/counts\"", "holds integers"]);
    let zero = folder.file("zero.h5", |file| matrix(file, "x", 0, 0, 4, false, |v| v));
    message(load(&[&zero]), &zero, &["holds no rows"]);
    let no_width = folder.file("no_width.h5", |file| matrix(file, "x", 0, 3, 0, false, |v| v));
    message(load(&[&no_width]), &no_width, &["\"/x\"", "rows without values"]);
    let scalar = folder.file("scalar.h5", |file| {
        file.new_dataset::<f32>().create("loss").unwrap();
    });
    message(load(&[&scalar]), &scalar, &["no float datasets with axes"]);
}

#[test]
fn what_can_be_read_in_two_ways_lists_the_candidates() {
    let folder = Folder::new();
    let path = folder.file("two.h5", |file| {
        matrix(file, "layer_1", 0, 2, 4, false, |v| v);
        matrix(file, "layer_2", 0, 2, 4, false, |v| v);
        strings(file, "ids", &["P1", "P2"]);
    });
    let parts = ["--dataset", "--dataset layer_1` (2, 4)", "--dataset layer_2` (2, 4)"];
    message(load(&[&path]), &path, &parts);
    let path = folder.file("parts.h5", |file| {
        matrix(file, "train", 0, 20, 4, false, |v| v);
        matrix(file, "test", 0, 10, 4, false, |v| v);
    });
    message(load(&[&path]), &path, &["--dataset", "--dataset train` (20, 4)"]);
    let path = folder.file("cube.h5", |file| {
        file.new_dataset::<f32>().shape((2, 3, 4)).create("x").unwrap();
    });
    message(load(&[&path]), &path, &["dataset \"/x\"", "(2, 3, 4)", "--index 0=1"]);
    let path = folder.file("cube_and_more.h5", |file| {
        file.new_dataset::<f32>().shape((2, 3, 4)).create("x").unwrap();
        matrix(file, "y", 0, 2, 4, false, |v| v);
    });
    message(load(&[&path]), &path, &["--dataset x` (2, 3, 4)", "--dataset y` (2, 4)"]);
    assert_eq!(load_with(&[&path], &dataset("y")).unwrap().n_rows(), 2);
    message(load_with(&[&path], &dataset("z")), &path, &["\"z\"", "\"/x\"", "\"/y\""]);
    message(load_with(&[&path], &dataset("no/z")), &path, &["\"no/z\"", "\"/y\""]);
    message(load_with(&[&path], &dataset("a\0b")), &path, &["name one of"]);
    let path = folder.file("text.h5", |file| {
        strings(file, "ids", &["P1", "P2"]);
        raw(file, "odd", &[2], &FileType::Odd, &[0; 6]);
    });
    message(load_with(&[&path], &dataset("ids")), &path, &["\"/ids\"", "holds text"]);
    message(load(&[&path]), &path, &["\"/odd\"", "floats of 3 bytes", "convert"]);
}

#[test]
fn ids_that_do_not_fit_are_refused() {
    let folder = Folder::new();
    let path = folder.file("short.h5", |file| {
        matrix(file, "x", 0, 3, 4, false, |v| v);
        strings(file, "ids", &["P1", "P2"]);
    });
    message(load(&[&path]), &path, &["\"/ids\"", "2 ids for the 3 rows of \"/x\""]);
    let path = folder.file("tab.h5", |file| {
        matrix(file, "x", 0, 3, 4, false, |v| v);
        strings(file, "ids", &["P1", "P\t2", ""]);
    });
    message(load(&[&path]), &path, &["\"/x\", row 1", "tab", "--ids"]);
    let data = load_with(&[&path], &skipping()).unwrap();
    assert_eq!((ids(&data), data.skipped().bad_id), (vec!["P1".to_owned()], 2));
}

#[test]
fn a_row_that_is_not_finite_is_named_or_skipped() {
    let folder = Folder::new();
    let path = folder.file("nan.h5", |file| {
        vector(file, "P1", 0, 4, |v| v);
        vector(file, "P2", 1, 4, |v| if v == value(1, 2) { f32::NAN } else { v });
        vector(file, "P3", 2, 4, |v| if v == value(2, 3) { f32::NEG_INFINITY } else { v });
        vector(file, "P4", 3, 4, |v| v);
    });
    message(load(&[&path]), &path, &["\"/P2\", row 0", "column 2 is NaN", "--skip-bad-rows"]);
    let data = load_with(&[&path], &skipping()).unwrap();
    assert_eq!(ids(&data), ["P1", "P4"]);
    assert_row(&data, 1, 3);
    let skipped = data.skipped();
    assert_eq!((skipped.non_finite, skipped.total()), (2, 2));
    assert!(skipped.examples[0].contains("/P2"), "{:?}", skipped.examples);
    assert_eq!(skipped.to_string(), "2 rows skipped: 2 not finite");

    let path = folder.file("large.h5", |file| {
        matrix(file, "x", 0, 6, 4, true, |v| if v == value(4, 1) { 1e40 } else { f64::from(v) });
    });
    message(load(&[&path]), &path, &["\"/x\", row 4", "column 1 is 1e40", "too large for float32"]);
    let data = load_with(&[&path], &skipping()).unwrap();
    assert_eq!(data.n_rows(), 5);
    assert_row(&data, 4, 5);
    assert_eq!(data.index().row_id(4), "large:5");
}

#[test]
fn more_than_a_tenth_is_dropped_only_by_all() {
    let folder = Folder::new();
    let path = folder.file("bad.h5", |file| {
        matrix(file, "x", 0, 40, 4, false, |v| if v >= value(35, 0) { f32::NAN } else { v });
    });
    let some = LoadOptions { bad_rows: topk_sae::data::BadRows::Skip, ..LoadOptions::default() };
    let parts = ["5 of 40 rows would be dropped (5 not finite)", "\"/x\", row 35", "--skip-bad-rows=all"];
    message(load_with(&[&path], &some), &path, &parts);
    assert_eq!(load_with(&[&path], &skipping()).unwrap().n_rows(), 35);
    let few = folder.file("few.h5", |file| {
        matrix(file, "x", 0, 40, 4, false, |v| if v >= value(36, 0) { f32::NAN } else { v });
    });
    assert_eq!(load_with(&[&few], &some).unwrap().n_rows(), 36);
}

#[test]
fn skipped_residues_leave_the_numbers_of_the_others() {
    let folder = Folder::new();
    let path = folder.file("residues.h5", |file| {
        matrix(file, "P1", 0, 3, 4, false, |v| if v == value(1, 0) { f32::NAN } else { v });
        matrix(file, "P2", 3, 1, 4, false, |_| f32::NAN);
        matrix(file, "P3", 4, 2, 4, false, |v| v);
    });
    message(load(&[&path]), &path, &["\"/P1\", row 1", "NaN"]);
    let data = load_with(&[&path], &skipping()).unwrap();
    assert_eq!(ids(&data), ["P1:1", "P1:3", "P3:1", "P3:2"]);
    assert_eq!((data.index().n_groups(), data.index().group_of(3)), (2, 1));
}

#[test]
fn another_width_is_named_and_never_dropped() {
    let folder = Folder::new();
    let path = folder.file("width.h5", |file| {
        vector(file, "A", 0, 3, |v| v);
        vector(file, "B", 1, 4, |v| v);
        vector(file, "C", 2, 4, |v| v);
    });
    for options in [LoadOptions::default(), skipping()] {
        let parts = ["1 of 3 values, the first \"/A\"; 2 of 4 values, the first \"/B\"", "--dataset"];
        message(load_with(&[&path], &options), &path, &parts);
    }
    let one = folder.file("one.h5", |file| vector(file, "C", 0, 4, |v| v));
    let two = folder.file("two.h5", |file| matrix(file, "x", 1, 3, 4, false, |v| v));
    let other = folder.file("other.h5", |file| vector(file, "D", 0, 5, |v| v));
    message(load(&[&one, &two, &other]), &other, &["\"/D\"", "rows of 5 values where most have 4"]);
}

#[test]
fn an_id_seen_twice_names_both_places_and_the_first_is_kept() {
    let folder = Folder::new();
    let a = folder.file("a.h5", |file| vector(file, "P1", 0, 4, |v| v));
    let b = folder.file("b.h5", |file| {
        matrix(file, "x", 1, 3, 4, false, |v| v);
        strings(file, "ids", &["P2", "P1", "P2"]);
    });
    let a_text = a.display().to_string();
    let parts = ["\"/x\", row 1", "\"P1\"", &a_text, "\"/P1\", row 0"];
    message(load(&[&a, &b]), &b, &parts);
    let data = load_with(&[&a, &b], &skipping()).unwrap();
    assert_eq!((data.skipped().duplicate, ids(&data).join(" ")), (2, "P1 P2".into()));
    assert_row(&data, 0, 0);
    assert_row(&data, 1, 1);
    message(load(&[&a, &a]), &a, &["seen before"]);
}

#[test]
fn a_file_of_which_no_row_is_left_says_why() {
    let folder = Folder::new();
    let path = folder.file("all.h5", |file| vector(file, "P1", 0, 4, |_| f32::NAN));
    let options = skipping();
    message(load_with(&[&path], &options), &path, &["no usable row", "\"/P1\""]);
}

/// Loading must answer, with data or with one line; whatever the bytes.
fn answers(path: &Path) -> bool {
    match load(&[path]) {
        Ok(_) => true,
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n'), "{text}");
            assert!(text.contains(&path.display().to_string()), "{text}");
            false
        }
    }
}

#[test]
fn a_file_cut_at_any_length_is_an_error() {
    let folder = Folder::new();
    let files = [
        folder.file("vectors.h5", |file| {
            for row in 0..40 {
                vector(file, &format!("P{row}"), row, 16, half::f16::from_f32);
            }
        }),
        folder.file("matrix.h5", |file| {
            matrix(file, "x", 0, 40, 16, false, |v| v);
            let ids: Vec<String> = (0..40).map(|i| format!("P{i}")).collect();
            strings(file, "ids", &ids.iter().map(String::as_str).collect::<Vec<_>>());
        }),
        folder.file("gzip.h5", |file| matrix(file, "x", 0, 40, 16, true, |v| v)),
    ];
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        for len in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
            let path = written(&folder, "cut.h5", &bytes[..len]);
            assert!(!answers(&path), "{len} of {}", bytes.len());
        }
    }
}

#[test]
fn a_cut_file_says_cut_short() {
    let folder = Folder::new();
    let file = folder.file("x.h5", |file| matrix(file, "x", 0, 40, 16, false, |v| v));
    let bytes = std::fs::read(&file).unwrap();
    let path = written(&folder, "cut.h5", &bytes[..bytes.len() - 100]);
    message(load(&[&path]), &path, &["cut short", "download or copy it again"]);
}

#[test]
fn rows_that_no_memory_holds_are_refused_before_any_is_taken() {
    let folder = Folder::new();
    let path = folder.file("unwritten.h5", |file| {
        file.new_dataset::<f32>().chunk((1024, 1000)).shape((4_000_000_000, 1000)).create("x").unwrap();
    });
    let (data, options) = ([path.clone()], LoadOptions::default());
    let parts = ["\"/x\"", "has 4,000,000,000 rows", "of memory where there are"];
    message(Embeddings::load(&data, &options), &path, &parts);
    // In their file they would still need ids.
    let shown = topk_sae::data::inspect(&path, &options).unwrap_err().to_string();
    assert!(
        parts.iter().all(|part| shown.contains(part)) && shown.contains("the ids of all rows"),
        "{shown}"
    );
}

#[test]
fn rows_that_are_packed_together_must_fit_a_window() {
    let folder = Folder::new();
    // 20 MB in one chunk, then in chunks of 4 MB.
    for (chunk, fits) in [(5000, false), (1000, true)] {
        let path = folder.file(&format!("{chunk}.h5"), |file| {
            let set = file.new_dataset::<f32>().chunk((chunk, 1024)).deflate(1).shape((5000, 1024));
            set.create("x").unwrap().as_writer().write_raw(&vec![1.0f32; 5000 * 1024]).unwrap();
        });
        let data = Embeddings::load_within(std::slice::from_ref(&path), &LoadOptions::default(), 16 << 20);
        if fits {
            assert!(data.unwrap().is_streamed());
            continue;
        }
        let parts = ["5,000 together (19.5 MiB)", "give --memory 40M", "`h5repack -l x:CHUNK=1024x1024 "];
        message(data, &path, &parts);
        let whole = Embeddings::load_within(&[path], &LoadOptions::default(), 40 << 20);
        assert_eq!(whole.unwrap().n_rows(), 5000);
    }
}

/// HDF5 1.10 goes round forever in a heap whose free part has no size.
#[test]
fn a_damaged_heap_of_an_attribute_is_an_error() {
    let folder = Folder::new();
    let text: hdf5::types::VarLenUnicode = "P12345".parse().unwrap();
    let path = folder.file("heap.h5", |file| {
        vector(file, "hash", 0, 4, |v| v);
        let dataset = file.dataset("hash").unwrap();
        dataset
            .new_attr::<hdf5::types::VarLenUnicode>()
            .create("original_id")
            .unwrap()
            .write_scalar(&text)
            .unwrap();
    });
    assert_eq!(ids(&load(&[&path]).unwrap()), ["P12345"]);
    let mut bytes = std::fs::read(&path).unwrap();
    let heap = bytes.windows(4).position(|four| four == b"GCOL").unwrap();
    // The first object has 6 bytes and two of padding.
    let free = heap + 16 + 16 + 8;
    assert_eq!(bytes[free..free + 2], [0, 0]);
    bytes[free + 8..free + 16].fill(0);
    std::fs::write(&path, bytes).unwrap();
    message(load(&[&path]), &path, &["\"/hash\"", "is damaged", "copy it again"]);
}

#[test]
fn a_name_with_a_line_break_does_not_break_the_line_of_an_error() {
    let folder = Folder::new();
    let path = folder.file("names.h5", |file| vector(file, "a\nb\u{1b}[31m", 0, 3, |v| v as i32));
    message(load(&[&path]), &path, &["a\\nb\\u{1b}[31m", "integers"]);
}

#[test]
fn a_file_that_changes_while_rows_are_read_from_it_is_an_error_of_one_line() {
    use topk_sae::rows::RowSource;
    for cut in [false, true] {
        let folder = Folder::new();
        let path = folder.path("rows.npy");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (500, 4), }\n";
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.bytes());
        bytes.extend((0..2000).flat_map(|n| (n as f32).to_le_bytes()));
        std::fs::write(&path, &bytes).unwrap();
        let data =
            Embeddings::load_within(std::slice::from_ref(&path), &LoadOptions::default(), 800).unwrap();
        let mut row = [0.0; 4];
        data.read(&[499], &mut row).unwrap();
        assert_eq!(row, [1996.0, 1997.0, 1998.0, 1999.0]);
        data.hold(&[0], &[1, 2]).unwrap();
        // Longer than the clock of a file system ticks.
        std::thread::sleep(std::time::Duration::from_millis(50));
        if cut {
            std::fs::write(&path, &bytes[..4000]).unwrap();
        } else {
            std::fs::write(&path, &bytes).unwrap();
        }
        let error = data.read(&[499], &mut row).unwrap_err().to_string();
        assert!(
            error.contains("rows.npy: was written to while it was read") && error.lines().count() == 1,
            "{error}"
        );
        // What is in memory already stays.
        data.read(&[0], &mut row).unwrap();
        let error = data.hold(&[1], &[5]).and_then(|()| data.hold(&[5], &[])).unwrap_err().to_string();
        assert!(error.contains("--resume"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }
}
