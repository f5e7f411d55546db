//! The split depends on ids and seed alone; batches on step and seed alone.
#![allow(clippy::unwrap_used)] // Tests stop at what they do not expect.

mod data_fixtures;

use std::collections::HashMap;

use data_fixtures::*;
use topk_sae::data::Embeddings;
use topk_sae::rows::{BatchOrder, Part, Split, part_of_id};

fn rows(ids: impl Iterator<Item = usize>) -> Embeddings {
    let ids: Vec<String> = ids.map(|i| format!("P{i:05}")).collect();
    let n = ids.len();
    Embeddings::from_rows(ids, 1, vec![0.0; n]).unwrap()
}

fn parts(data: &Embeddings, split: &Split) -> HashMap<String, Part> {
    let mut parts = HashMap::new();
    for part in [Part::Train, Part::Val, Part::Test] {
        for &row in split.rows(part) {
            assert_eq!(parts.insert(data.index().row_id(row as usize), part), None);
        }
    }
    assert_eq!(parts.len(), data.n_rows());
    parts
}

#[test]
fn about_80_10_10_of_the_ids_go_to_each_part() {
    let data = rows(0..20_000);
    let split = Split::new(data.index(), 0);
    // Four standard deviations of a binomial count.
    let near = |n: usize, p: f64| (n as f64 - 20_000.0 * p).abs() < 4.0 * (20_000.0 * p * (1.0 - p)).sqrt();
    assert!(near(split.train.len(), 0.8), "{}", split.train.len());
    assert!(near(split.val.len(), 0.1), "{}", split.val.len());
    assert!(near(split.test.len(), 0.1), "{}", split.test.len());
}

#[test]
fn an_id_keeps_its_part_when_data_are_added_or_reordered() {
    let few = rows(0..500);
    let many = rows((0..900).rev());
    let (small, large) =
        (parts(&few, &Split::new(few.index(), 3)), parts(&many, &Split::new(many.index(), 3)));
    assert!(small.iter().all(|(id, part)| large[id] == *part));
    let other = parts(&few, &Split::new(few.index(), 4));
    assert!(small.iter().any(|(id, part)| other[id] != *part));
}

#[test]
fn the_split_never_changes_between_versions() {
    // Written down once: runs are compared across versions, so these may never change.
    let found: Vec<String> = ["P12345", "Q8N0S6", "A0A0U5AUY6", "", "sentence 1"]
        .iter()
        .map(|id| part_of_id(id, 0).to_string())
        .collect();
    assert_eq!(found.join(" "), "test train val train train");
}

#[test]
fn files_in_another_order_split_the_same() {
    let folder = Folder::new();
    let file = |name: &str, first: usize| {
        folder.file(name, |file| {
            for row in first..first + 50 {
                vector(file, &format!("P{row}"), row, 2, |v| v);
            }
        })
    };
    let (a, b) = (file("a.h5", 0), file("b.h5", 50));
    let (ab, ba) = (load(&[&a, &b]).unwrap(), load(&[&b, &a]).unwrap());
    assert_eq!(parts(&ab, &Split::new(ab.index(), 1)), parts(&ba, &Split::new(ba.index(), 1)));
}

#[test]
fn residues_of_a_protein_stay_together() {
    let folder = Folder::new();
    let path = folder.file("residues.h5", |file| {
        for p in 0..60 {
            matrix(file, &format!("P{p}"), p, 1 + p % 5, 3, false, |v| v);
        }
    });
    let data = load(&[&path]).unwrap();
    let split = Split::new(data.index(), 0);
    for part in [Part::Train, Part::Val, Part::Test] {
        for &row in split.rows(part) {
            let id = data.index().group_id(data.index().group_of(row as usize));
            assert_eq!(part_of_id(id, 0), part);
        }
    }
    assert_eq!(split.to_tsv(data.index()).lines().count(), 61);
}

#[test]
fn the_table_gives_the_split_back() {
    let data = rows(0..300);
    let split = Split::new(data.index(), 7);
    let table = split.to_tsv(data.index());
    assert!(table.starts_with("id\tsplit\nP00000\t"));
    let folder = Folder::new();
    let path = folder.path("splits.tsv");
    std::fs::write(&path, &table).unwrap();
    assert_eq!(Split::from_tsv(&path, data.index()).unwrap(), (split, 0));
    let more = rows(0..310);
    let (split, missing) = Split::from_tsv(&path, more.index()).unwrap();
    assert_eq!(missing, 10);
    assert_eq!(split.train.len() + split.val.len() + split.test.len(), 300);
}

#[test]
fn ids_with_quotes_come_back_and_tables_of_version_0_1_0_stay_readable() {
    let ids: Vec<String> = ["\"a", "b\"c", "d", "\"e\" f"]
        .iter()
        .map(|s| (*s).to_owned())
        .chain((0..40).map(|i| format!("\"{i}")))
        .collect();
    let data = Embeddings::from_rows(ids.clone(), 1, vec![0.0; ids.len()]).unwrap();
    let split = Split::new(data.index(), 0);
    let table = split.to_tsv(data.index());
    // As any reader of quoted fields takes it.
    let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').from_reader(table.as_bytes());
    let read: Vec<String> = reader.records().map(|record| record.unwrap()[0].to_owned()).collect();
    assert_eq!(read, ids);
    // What version 0.1.0 wrote.
    let plain = ids.iter().map(|id| format!("{id}\t{}\n", part_of_id(id, 0))).collect::<String>();
    let plain = format!("id\tsplit\n{plain}");
    let folder = Folder::new();
    let path = folder.path("splits.tsv");
    for text in [&table, &plain] {
        assert!(split.is_table(text, data.index()), "{text}");
        std::fs::write(&path, text).unwrap();
        assert_eq!(Split::from_tsv(&path, data.index()).unwrap(), (split.clone(), 0), "{text}");
    }
    assert!(!split.is_table(&plain.replace("test", "val"), data.index()));
}

#[test]
fn a_broken_table_names_the_line() {
    let folder = Folder::new();
    let data = rows(0..3);
    let path = folder.path("splits.tsv");
    for (text, part) in [
        ("", "line 1"),
        ("name\tpart\n", "line 1"),
        ("id\tsplit\nP1\ttrain\nP2 train\n", "line 3"),
        ("id\tsplit\nP1\ttrain\nP1\tval\n", "line 3"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Split::from_tsv(&path, data.index()).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn every_row_is_seen_exactly_once_an_epoch() {
    for (n, batch) in [(10, 3), (7, 7), (64, 16), (5, 1), (1, 1)] {
        let all: Vec<u32> = (100..100 + n).collect();
        let mut order = BatchOrder::new(all.clone(), batch, 5);
        // `n` batches are `batch` whole epochs.
        let stream: Vec<u32> = (0..u64::from(n)).flat_map(|s| order.batch(s).to_vec()).collect();
        for epoch in stream.chunks(n as usize) {
            let mut epoch = epoch.to_vec();
            epoch.sort_unstable();
            assert_eq!(epoch, all);
        }
    }
}

#[test]
fn a_batch_depends_on_its_step_alone() {
    let all: Vec<u32> = (0..50).collect();
    let mut forward = BatchOrder::new(all.clone(), 8, 1);
    let batches: Vec<Vec<u32>> = (0..40).map(|s| forward.batch(s).to_vec()).collect();
    for step in [39, 0, 17, 6, 7, 31] {
        let mut fresh = BatchOrder::new(all.clone(), 8, 1);
        assert_eq!(fresh.batch(step), batches[step as usize]);
        assert_eq!(forward.batch(step), batches[step as usize]);
    }
    assert_ne!(BatchOrder::new(all.clone(), 8, 2).batch(0), batches[0]);
    assert_ne!(batches[0][..], all[..8]);
    assert!((forward.epoch_of(25) - 4.0).abs() < 1e-12);
}

#[test]
fn epochs_differ_and_positions_are_even() {
    // 4000 epochs of 8 rows: each row at each place 500 times, give or take 5 deviations.
    let mut order = BatchOrder::new((0..8).collect(), 8, 9);
    let mut counts = [[0i32; 8]; 8];
    for epoch in 0..4000 {
        for (place, &row) in order.batch(epoch).iter().enumerate() {
            counts[place][row as usize] += 1;
        }
    }
    assert!(counts.iter().flatten().all(|n| (n - 500).abs() < 105), "{counts:?}");
}

#[test]
fn the_order_never_changes_between_versions() {
    // Written down once: a resumed run must see the rows that it would have seen.
    let mut order = BatchOrder::new((0..10).collect(), 4, 42);
    let found: Vec<Vec<u32>> = [0, 2, 1_000_000].iter().map(|&s| order.batch(s).to_vec()).collect();
    assert_eq!(found, [[9, 7, 2, 5], [8, 6, 8, 2], [6, 9, 4, 3]]);
}

#[test]
fn no_rows_give_empty_batches_and_too_large_batches_are_the_whole() {
    assert_eq!(BatchOrder::new(Vec::new(), 4, 0).batch(3), [0u32; 0]);
    assert_eq!(BatchOrder::new(vec![3, 4], 9, 0).batch(3).len(), 2);
}

/// A table beside `folder`'s files.
fn table(folder: &Folder, name: &str, lines: impl Iterator<Item = String>) -> std::path::PathBuf {
    let path = folder.path(name);
    std::fs::write(&path, lines.collect::<String>()).unwrap();
    path
}

fn shares(data: &Embeddings, split: &Split) -> [f64; 3] {
    [&split.train, &split.val, &split.test].map(|rows| rows.len() as f64 / data.n_rows() as f64)
}

#[test]
fn a_group_is_in_one_part_and_the_parts_have_their_shares() {
    let folder = Folder::new();
    // Groups of 1 to 60 ids.
    let group = |i: usize| ((i as f64).sqrt() * 2.0) as usize;
    let lines = |n: usize| (0..n).map(move |i| format!("P{i:05}\tG{}\n", group(i)));
    let path = table(&folder, "groups.tsv", lines(900));
    let reversed = table(&folder, "mmseqs.tsv", (0..900).rev().map(|i| format!("G{}\tP{i:05}\n", group(i))));
    let mut data = rows(0..900);
    data.group_by_table(&path, false).unwrap();
    assert!(data.warnings().is_empty());
    for seed in 0..20 {
        let split = Split::new(data.index(), seed);
        let of = parts(&data, &split);
        for i in 1..900 {
            let (a, b) = (format!("P{:05}", i - 1), format!("P{i:05}"));
            assert!(group(i) != group(i - 1) || of[&a] == of[&b], "{a} {b}");
        }
        let [train, val, test] = shares(&data, &split);
        assert!((0.78..0.82).contains(&train) && val > 0.08 && test > 0.08, "{train} {val} {test}");
        // Neither the order of rows, nor that of the table, nor that of its columns counts.
        let mut other = rows((0..900).rev());
        other.group_by_table(&reversed, false).unwrap();
        assert_eq!(parts(&other, &Split::new(other.index(), seed)), of);
    }
    let tsv = Split::new(data.index(), 0).to_tsv(data.index());
    assert!(tsv.starts_with("id\tsplit\tgroup\nP00000\t") && tsv.contains("\tG2\n"), "{}", &tsv[..60]);
    let path = table(&folder, "splits.tsv", [tsv].into_iter());
    let (again, missing) = Split::from_tsv(&path, data.index()).unwrap();
    assert_eq!((again, missing), (Split::new(data.index(), 0), 0));
}

#[test]
fn a_group_larger_than_the_others_together_is_trained_on() {
    let folder = Folder::new();
    let lines =
        (0..300).map(|i| format!("P{i:05}\t{}\n", if i < 270 { "large".into() } else { format!("g{i}") }));
    let mut data = rows(0..300);
    data.group_by_table(&table(&folder, "groups.tsv", lines), false).unwrap();
    let [train, val, test] = shares(&data, &Split::new(data.index(), 1));
    assert!((0.9..0.91).contains(&train) && val > 0.03 && test > 0.03, "{train} {val} {test}");
    // A few groups, all larger than a tenth: one each at least.
    for n in 3..9 {
        let lines = (0..300).map(|i| format!("P{i:05}\td{}\n", i % n));
        let mut data = rows(0..300);
        data.group_by_table(&table(&folder, "few.tsv", lines), false).unwrap();
        let [train, val, test] = shares(&data, &Split::new(data.index(), 1));
        assert!(train >= val.max(test) && val > 0.0 && test > 0.0, "{n}: {train} {val} {test}");
    }
}

#[test]
fn tables_of_groups_that_do_not_fit_are_refused_or_warned_about() {
    let folder = Folder::new();
    let write = |name: &str, text: &str| table(&folder, name, [text.to_owned()].into_iter());
    let mut data = rows(0..4);
    let mut fails = |path: &std::path::Path, words: &[&str]| {
        let error = data.group_by_table(path, false).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    fails(&write("other.tsv", "Q1\tA\nQ2\tB\n"), &["none of the ids", "\"Q1\"", "\"P00000\""]);
    fails(&write("two.tsv", "P00000\tA\nP00000\tB\n"), &["line 2", "\"B\"", "line 1", "\"A\""]);
    fails(&write("comma.csv", "P00000,A\n"), &["line 1", "two columns separated by a tab"]);
    data.group_by_table(&write("some.tsv", "id\tgroup\nP00000\tA\nP00001\tA\n"), false).unwrap();
    assert!(data.warnings()[0].contains("2 of 4 ids are not in"), "{:?}", data.warnings());
    assert_eq!((data.index().cluster_of(1), data.index().cluster_of(2)), ("A", "P00002"));
}

#[test]
fn a_dataset_beside_the_matrix_groups_its_rows() {
    let folder = Folder::new();
    let path = folder.file("cells.h5", |file| {
        matrix(file, "x", 0, 40, 4, false, |v| v);
        let donors: Vec<String> = (0..40).map(|i| format!("donor {}", i % 7)).collect();
        strings(file, "donor", &donors.iter().map(String::as_str).collect::<Vec<_>>());
    });
    let by = |name: &str| topk_sae::data::LoadOptions { group_by: Some(name.into()), ..Default::default() };
    let data = load_with(&[&path], &by("donor")).unwrap();
    let of = parts(&data, &Split::new(data.index(), 0));
    for i in 7..40 {
        assert_eq!(of[&format!("cells:{i}")], of[&format!("cells:{}", i - 7)]);
    }
    assert_eq!(data.index().cluster_of(8), "donor 1");
    message(load_with(&[&path], &by("no")), &path, &["\"no\"", "40 ids", "--group-by", "--groups"]);
}
