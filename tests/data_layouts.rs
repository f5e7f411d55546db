//! Every layout and type is found by itself and read exactly.
#![allow(clippy::unwrap_used)] // Tests stop at what they do not expect.

mod data_fixtures;

use data_fixtures::*;
use half::{bf16, f16};
use topk_sae::data::{LoadOptions, inspect};
use topk_sae::rows::Dtype;

#[test]
fn one_vector_per_id_at_the_root_comes_in_byte_order_of_names() {
    let folder = Folder::new();
    let path = folder.file("a.h5", |file| {
        for (row, name) in ["b", "A", "a", "é", "B1"].into_iter().enumerate() {
            vector(file, name, row, 4, f16::from_f32);
        }
    });
    let data = load(&[&path]).unwrap();
    assert_eq!(ids(&data), ["A", "B1", "a", "b", "é"]);
    assert_eq!((data.n_rows(), data.d_in(), data.dtype()), (5, 4, Dtype::F16));
    assert_eq!((data.index().n_groups(), data.bytes()), (5, 40));
    for (index, fixture) in [1, 4, 2, 0, 3].into_iter().enumerate() {
        assert_row(&data, index, fixture);
        assert_eq!(data.index().group_of(index), index);
    }
    assert_eq!(data.index().pieces()[0].layout, "one vector per id");
}

#[test]
fn files_of_the_latest_format_come_in_byte_order_too() {
    let folder = Folder::new();
    let path = folder.path("latest.h5");
    let file = hdf5::File::with_options().with_fapl(|p| p.libver_latest()).create(&path).unwrap();
    for row in (0..300).rev() {
        vector(&file, &format!("P{row:03}"), row, 4, f16::from_f32);
    }
    file.close().unwrap();
    let data = load(&[&path]).unwrap();
    assert_eq!(data.n_rows(), 300);
    for row in 0..300 {
        assert_eq!(data.index().row_id(row), format!("P{row:03}"));
        assert_eq!(row as f32 * 8.0 - 16.0, crate::row(&data, row)[0]);
    }
}

#[test]
fn ids_in_groups_are_the_last_part_unless_it_repeats() {
    let folder = Folder::new();
    let path = folder.file("groups.h5", |file| {
        let human = file.create_group("human").unwrap();
        vector(&human, "P1", 0, 3, |v| v);
        let mouse = file.create_group("mouse/adult").unwrap();
        vector(&mouse, "P2", 1, 3, |v| v);
        vector(file, "P0", 2, 3, |v| v);
    });
    assert_eq!(ids(&load(&[&path]).unwrap()), ["P0", "P1", "P2"]);
    let colliding = folder.file("colliding.h5", |file| {
        for (row, group) in ["human", "mouse"].into_iter().enumerate() {
            let group = file.create_group(group).unwrap();
            vector(&group, "P1", row, 3, |v| v);
            vector(&group, &format!("Q{row}"), row, 3, |v| v);
        }
    });
    message(load(&[&colliding]), &colliding, &["--dataset human`", "--dataset mouse`"]);
    let expected = ["human/P1", "human/Q0", "mouse/P1", "mouse/Q1"];
    assert_eq!(ids(&load_with(&[&colliding], &dataset("*/*")).unwrap()), expected);
    assert_eq!(ids(&load_with(&[&colliding], &dataset("mouse")).unwrap()), ["P1", "Q1"]);
    let one_name = folder.file("one_name.h5", |file| {
        for (row, group) in ["P7", "P8"].into_iter().enumerate() {
            let group = file.create_group(group).unwrap();
            vector(&group, "embedding", row, 3, |v| v);
        }
    });
    assert_eq!(ids(&load(&[&one_name]).unwrap()), ["P7", "P8"]);
}

#[test]
fn groups_that_loop_are_read_once() {
    let folder = Folder::new();
    let path = folder.file("loop.h5", |file| {
        let group = file.create_group("g").unwrap();
        vector(&group, "P1", 0, 3, |v| v);
        file.link_hard("/g", "g/again").unwrap();
        file.link_soft("/g", "soft").unwrap();
    });
    assert_eq!(ids(&load(&[&path]).unwrap()), ["P1"]);
}

#[test]
fn external_links_are_read_from_the_other_file() {
    let folder = Folder::new();
    let other = folder.file("other.h5", |file| {
        vector(file, "x", 5, 3, |v| v);
        vector(file, "y", 6, 3, |v| v);
    });
    let path = folder.file("index.h5", |file| {
        vector(file, "P0", 0, 3, |v| v);
        file.link_external(other.to_str().unwrap(), "/y", "P1").unwrap();
    });
    let data = load(&[&path]).unwrap();
    assert_eq!(ids(&data), ["P0", "P1"]);
    assert_row(&data, 1, 6);
}

#[test]
fn residues_are_rows_and_proteins_are_groups() {
    let folder = Folder::new();
    let path = folder.file("residues.h5", |file| {
        matrix(file, "P1", 0, 3, 4, false, f16::from_f32);
        matrix(file, "P2", 3, 1, 4, false, f16::from_f32);
        matrix(file, "P3", 4, 2, 4, true, f16::from_f32);
    });
    let data = load(&[&path]).unwrap();
    assert_eq!(ids(&data), ["P1:1", "P1:2", "P1:3", "P2:1", "P3:1", "P3:2"]);
    assert_eq!((data.n_rows(), data.index().n_groups()), (6, 3));
    let groups: Vec<usize> = (0..6).map(|row| data.index().group_of(row)).collect();
    assert_eq!(groups, [0, 0, 0, 1, 2, 2]);
    assert_eq!(data.index().group_id(2), "P3");
    (0..6).for_each(|row| assert_row(&data, row, row));
}

#[test]
fn datasets_of_one_row_each_are_rows() {
    let folder = Folder::new();
    let path = folder.file("rows.h5", |file| {
        for row in 0..4 {
            matrix(file, &format!("P{row}"), row, 1, 5, false, |v| v);
        }
    });
    let data = load(&[&path]).unwrap();
    assert_eq!((data.n_rows(), data.index().n_groups(), data.d_in()), (4, 4, 5));
    assert_eq!(data.index().group_id(3), "P3");
    (0..4).for_each(|row| assert_row(&data, row, row));
}

#[test]
fn a_matrix_finds_its_ids_fixed_or_variable_by_name_or_alone() {
    let folder = Folder::new();
    let names = ["P1", "P2", "P3"];
    let check = |name: &str, fill: &dyn Fn(&hdf5::File)| {
        let path = folder.file(name, |file| {
            matrix(file, "embeddings", 0, 3, 4, false, |v| v);
            file.new_dataset_builder().with_data(&[1i32, 2, 3]).create("length").unwrap();
            fill(file);
        });
        let data = load(&[&path]).unwrap();
        assert_eq!(ids(&data), names, "{name}");
        (0..3).for_each(|row| assert_row(&data, row, row));
    };
    check("variable.h5", &|file| strings(file, "ids", &names));
    check("fixed.h5", &|file| fixed_strings(file, "Accession", &names));
    check("alone.h5", &|file| strings(file, "who", &names));
    check("beside.h5", &|file| {
        strings(file, "ids", &names);
        strings(file, "sequence", &["AA", "AC", "AG"]);
        vector(file, "mean", 9, 4, |v| v);
    });
}

#[test]
fn variable_length_ids_of_any_length_and_many_heaps_are_exact() {
    let folder = Folder::new();
    let n = 3000;
    let texts: Vec<String> = (0..n).map(|i| format!("{i}é{}", "x".repeat(i % 97))).collect();
    let path = folder.file("long.h5", |file| {
        matrix(file, "x", 0, n, 2, false, |v| v);
        strings(file, "ids", &texts.iter().map(String::as_str).collect::<Vec<_>>());
    });
    assert_eq!(ids(&load(&[&path]).unwrap()), texts);
    let path = folder.file("chunked.h5", |file| {
        matrix(file, "x", 0, n, 2, false, |v| v);
        let values: Vec<hdf5::types::VarLenUnicode> =
            texts.iter().map(|text| text.parse().unwrap()).collect();
        let builder = file.new_dataset_builder().chunk(100).deflate(3);
        builder.with_data(&values).create("ids").unwrap();
    });
    assert_eq!(ids(&load(&[&path]).unwrap()), texts);
}

#[test]
fn a_matrix_without_ids_is_numbered_by_file_and_row() {
    let folder = Folder::new();
    let path = folder.file("some.data.h5", |file| {
        matrix(file, "x", 0, 3, 4, false, |v| v);
        strings(file, "label", &["a", "a", "b"]);
    });
    assert_eq!(ids(&load(&[&path]).unwrap()), ["some.data:0", "some.data:1", "some.data:2"]);
}

#[test]
fn every_type_in_both_byte_orders_is_exact() {
    let folder = Folder::new();
    let bytes = |each: &dyn Fn(f32) -> Vec<u8>| -> Vec<u8> {
        (0..12).flat_map(|i| each(value(i / 4, i % 4))).collect()
    };
    let check = |name: &str, dtype: Dtype, fill: &dyn Fn(&hdf5::File)| {
        let path = folder.file(name, fill);
        let data = load(&[&path]).unwrap();
        assert_eq!(data.dtype(), dtype, "{name}");
        (0..3).for_each(|row| assert_row(&data, row, row));
    };
    check("f16", Dtype::F16, &|f| matrix(f, "x", 0, 3, 4, false, f16::from_f32));
    check("f32", Dtype::F32, &|f| matrix(f, "x", 0, 3, 4, false, |v| v));
    check("f64", Dtype::F64, &|f| matrix(f, "x", 0, 3, 4, false, f64::from));
    check("f16 gzip", Dtype::F16, &|f| matrix(f, "x", 0, 3, 4, true, f16::from_f32));
    check("f32 gzip", Dtype::F32, &|f| matrix(f, "x", 0, 3, 4, true, |v| v));
    check("f32 be", Dtype::F32, &|f| {
        raw(f, "x", &[3, 4], &FileType::F32Be, &bytes(&|v| v.to_be_bytes().to_vec()));
    });
    check("f64 be", Dtype::F64, &|f| {
        let values = bytes(&|v| f64::from(v).to_be_bytes().to_vec());
        raw(f, "x", &[3, 4], &FileType::F64Be, &values);
    });
    check("f16 be", Dtype::F16, &|f| {
        let values = bytes(&|v| f16::from_f32(v).to_be_bytes().to_vec());
        raw(f, "x", &[3, 4], &FileType::F16Be, &values);
    });
    check("bf16", Dtype::Bf16, &|f| {
        let values = bytes(&|v| bf16::from_f32(v).to_le_bytes().to_vec());
        raw(f, "x", &[3, 4], &FileType::Bf16, &values);
    });
    check("bf16 as uint16", Dtype::Bf16, &|f| {
        matrix(f, "x", 0, 3, 4, false, |v| bf16::from_f32(v).to_bits());
        let text: hdf5::types::VarLenUnicode = "bfloat16".parse().unwrap();
        let attribute = f.dataset("x").unwrap();
        let attribute = attribute.new_attr::<hdf5::types::VarLenUnicode>().create("dtype").unwrap();
        attribute.write_scalar(&text).unwrap();
    });
}

#[test]
fn vectors_of_mixed_types_in_one_file_are_all_exact() {
    let folder = Folder::new();
    let path = folder.file("mixed.h5", |file| {
        vector(file, "a", 0, 4, f16::from_f32);
        vector(file, "b", 1, 4, |v| v);
        let bytes: Vec<u8> = (0..4).flat_map(|c| value(2, c).to_be_bytes()).collect();
        raw(file, "c", &[4], &FileType::F32Be, &bytes);
        vector(file, "d", 3, 4, f16::from_f32);
    });
    let data = load(&[&path]).unwrap();
    assert_eq!(data.dtype(), Dtype::F32);
    (0..4).for_each(|row| assert_row(&data, row, row));
}

#[test]
fn several_files_are_one_data_set_of_the_widest_type() {
    let folder = Folder::new();
    let a = folder.file("a.h5", |file| vector(file, "P1", 0, 4, f16::from_f32));
    let b = folder.file("b.h5", |file| {
        let bytes: Vec<u8> = (0..4).flat_map(|c| bf16::from_f32(value(1, c)).to_le_bytes()).collect();
        raw(file, "P2", &[4], &FileType::Bf16, &bytes);
    });
    let c = folder.file("c.h5", |file| {
        matrix(file, "x", 2, 2, 4, true, f64::from);
        strings(file, "ids", &["P3", "P4"]);
    });
    let data = load(&[&a, &b]).unwrap();
    assert_eq!((data.dtype(), ids(&data)), (Dtype::F32, vec!["P1".into(), "P2".into()]));
    let data = load(&[&c, &a, &b]).unwrap();
    assert_eq!((data.dtype(), ids(&data).join(" ")), (Dtype::F64, "P3 P4 P1 P2".into()));
    for (index, fixture) in [2, 3, 0, 1].into_iter().enumerate() {
        assert_row(&data, index, fixture);
    }
    assert_eq!(data.index().pieces().iter().map(|s| s.n_rows).collect::<Vec<_>>(), [2, 1, 1]);
}

#[test]
fn residues_and_vectors_of_several_files_keep_their_groups() {
    let folder = Folder::new();
    let a = folder.file("a.h5", |file| vector(file, "P1", 0, 4, |v| v));
    let b = folder.file("b.h5", |file| {
        matrix(file, "P2", 1, 2, 4, false, |v| v);
        matrix(file, "P3", 3, 1, 4, false, |v| v);
    });
    let data = load(&[&a, &b]).unwrap();
    assert_eq!(ids(&data), ["P1", "P2:1", "P2:2", "P3:1"]);
    assert_eq!(data.index().n_groups(), 3);
}

#[test]
fn dataset_names_a_matrix_or_a_group() {
    let folder = Folder::new();
    let path = folder.file("many.h5", |file| {
        let layer = file.create_group("layer").unwrap();
        matrix(&layer, "embeddings", 0, 2, 4, false, |v| v);
        strings(&layer, "ids", &["P1", "P2"]);
        matrix(file, "other", 2, 3, 6, false, |v| v);
        strings(file, "names", &["Q1", "Q2", "Q3"]);
        let vectors = file.create_group("vectors").unwrap();
        vector(&vectors, "V1", 7, 4, |v| v);
    });
    for name in ["layer/embeddings", "/layer/embeddings", "layer"] {
        assert_eq!(ids(&load_with(&[&path], &dataset(name)).unwrap()), ["P1", "P2"], "{name}");
    }
    assert_eq!(ids(&load_with(&[&path], &dataset("other")).unwrap()), ["Q1", "Q2", "Q3"]);
    assert_eq!(ids(&load_with(&[&path], &dataset("vectors")).unwrap()), ["V1"]);
    assert_eq!(ids(&load_with(&[&path], &dataset("vectors/V1")).unwrap()), ["V1"]);
}

#[test]
fn a_pattern_takes_what_can_be_read_and_names_it_by_its_star() {
    let folder = Folder::new();
    let path = folder.file("records.h5", |file| {
        for (row, name) in ["P1", "P2"].into_iter().enumerate() {
            let group = file.create_group(name).unwrap();
            vector(&group, "emb", row, 4, |v| v);
            vector(&group, "plddt", row, 3, |v| v);
            file.group(name).unwrap().new_dataset::<f32>().create("loss").unwrap();
        }
        strings(file, "headers", &["one", "two"]);
        let notes = file.create_group("notes").unwrap();
        strings(&notes, "emb", &["no numbers"]);
    });
    message(load(&[&path]), &path, &["--dataset '*/emb'` (2 of 4)", "--dataset '*/plddt'` (2 of 3)"]);
    let data = load_with(&[&path], &dataset("*/emb")).unwrap();
    assert_eq!(ids(&data), ["P1", "P2"]);
    assert_row(&data, 1, 1);
    message(load_with(&[&path], &dataset("*/none")), &path, &["no dataset or group \"*/none\""]);
    message(load_with(&[&path], &dataset("*/loss")), &path, &["no float datasets with axes"]);
}

#[test]
fn ids_are_named_by_dataset_field_attribute_or_row() {
    use hdf5::types::VarLenUnicode;
    let folder = Folder::new();
    let path = folder.file("ids.h5", |file| {
        matrix(file, "x", 0, 2, 4, false, |v| v);
        strings(file, "ids", &["P1", "P2"]);
        strings(file, "other", &["Q1", "Q2"]);
        file.new_dataset_builder().with_data(&[7i64, 9]).create("number").unwrap();
        let names: Vec<VarLenUnicode> = ["A1", "A2"].iter().map(|text| text.parse().unwrap()).collect();
        let attribute = file.dataset("x").unwrap();
        attribute.new_attr::<VarLenUnicode>().shape(2).create("who").unwrap().write(&names).unwrap();
    });
    let named = |name: &str| LoadOptions { ids: Some(name.into()), ..LoadOptions::default() };
    for (name, wanted) in [
        ("ids", ["P1", "P2"]),
        ("/other", ["Q1", "Q2"]),
        ("number", ["7", "9"]),
        ("@who", ["A1", "A2"]),
        ("row", ["ids:0", "ids:1"]),
    ] {
        assert_eq!(ids(&load_with(&[&path], &named(name)).unwrap()), wanted, "{name}");
    }
    message(load_with(&[&path], &named("no")), &path, &["no ids \"no\"", "\"/other\" (2)", "--ids row"]);
    let per_id = folder.file("per_id.h5", |file| vector(file, "P1", 0, 4, |v| v));
    message(load_with(&[&per_id], &named("ids")), &per_id, &["--ids ids names nothing"]);
    message(load_with(&[&per_id], &named("@no")), &per_id, &["no attribute \"no\""]);
}

#[test]
fn a_large_matrix_is_read_in_parts_without_seams() {
    let folder = Folder::new();
    let path = folder.file("large.h5", |file| {
        matrix(file, "x", 0, 3000, 500, false, |v| v);
    });
    let data = load(&[&path]).unwrap();
    (0..3000).for_each(|row| assert_row(&data, row, row));
}

#[test]
fn the_fingerprint_tells_values_ids_and_order_apart() {
    let folder = Folder::new();
    let make = |name: &str, id: &str, row: usize| {
        folder.file(name, |file| {
            vector(file, "P1", 0, 4, |v| v);
            vector(file, id, row, 4, |v| v);
        })
    };
    let print = |path: &std::path::Path| load(&[path]).unwrap().fingerprint().unwrap();
    let first = print(&make("a.h5", "P2", 1));
    assert_eq!(first, print(&make("b.h5", "P2", 1)));
    assert_ne!(first, print(&make("c.h5", "P3", 1)));
    assert_ne!(first, print(&make("d.h5", "P2", 2)));
}

#[test]
fn inspect_tells_what_a_file_holds_and_works_on_bad_rows() {
    let folder = Folder::new();
    let path = folder.file("bad.h5", |file| {
        let values = [1.0f32, 3.0, f32::NAN, 0.0, 2.0, 2.0, 5.0, 7.0];
        let set = file.new_dataset::<f32>().chunk((2, 2)).deflate(1).shape((4, 2));
        set.create("x").unwrap().as_writer().write_raw(&values).unwrap();
        strings(file, "ids", &["P1", "P2", "P3", "P1"]);
    });
    let summary = inspect(&path, &Default::default()).unwrap();
    assert_eq!((summary.n_rows, summary.d_in, summary.constant_rows), (2, 2, 1));
    assert_eq!((summary.non_finite_rows, summary.duplicate_id_rows), (1, 1));
    assert_eq!((summary.min, summary.max, summary.mean), (1.0, 3.0, 2.0));
    assert!((summary.std - 0.5f64.sqrt()).abs() < 1e-12);
    assert_eq!(summary.storage, "chunked (2, 2), gzip");
    assert_eq!(summary.first_ids, ["P1", "P3"]);
    assert_eq!(summary.examples.len(), 2);
    assert!(serde_json::to_string(&summary).unwrap().contains("\"dtype\":\"float32\""));
}
