//! Random trees of datasets: each is read in one way or refused, whatever the order in which its names were written, and
//! reading whole, block by block and for `inspect` agree. Random changes of a file's bytes never end a reader.
#![allow(clippy::unwrap_used)] // Tests stop at what they do not expect.

mod data_fixtures;

use data_fixtures::Folder;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use std::path::Path;
use topk_sae::data::{DataFiles, Embeddings, LoadOptions, inspect};

/// One dataset of a tree: where it lies, and what it holds.
#[derive(Clone, Debug)]
enum Leaf {
    Floats(String, Vec<usize>),
    Texts(String, Vec<String>),
    Integers(String, Vec<usize>),
}

impl Leaf {
    fn path(&self) -> &str {
        match self {
            Self::Floats(path, _) | Self::Texts(path, _) | Self::Integers(path, _) => path,
        }
    }

    fn write(&self, file: &hdf5::File) {
        if let Some((group, _)) = self.path().rsplit_once('/')
            && file.group(group).is_err()
        {
            file.create_group(group).unwrap();
        }
        match self {
            Self::Floats(path, shape) => {
                let n: usize = shape.iter().product();
                // Each dataset has values of its own: a row that is read under another name is seen.
                let base =
                    path.bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
                        % 9973;
                let values: Vec<f32> = (0..n).map(|i| base as f32 + i as f32 / 64.0).collect();
                let dataset = file.new_dataset::<f32>().shape(shape.clone()).create(path.as_str()).unwrap();
                dataset.as_writer().write_raw(&values).unwrap();
            }
            Self::Texts(path, texts) => {
                data_fixtures::strings(file, path, &texts.iter().map(String::as_str).collect::<Vec<_>>());
            }
            Self::Integers(path, shape) => {
                let n: usize = shape.iter().product();
                let values: Vec<i64> = (0..n as i64).collect();
                let dataset = file.new_dataset::<i64>().shape(shape.clone()).create(path.as_str()).unwrap();
                dataset.as_writer().write_raw(&values).unwrap();
            }
        }
    }
}

const GROUPS: [&str; 12] =
    ["", "", "", "embeddings", "layer_6", "layer_33", "train", "test", "human", "P1", "P2", "a/b"];
const NAMES: [&str; 18] = [
    "P1",
    "P2",
    "P3",
    "Q9",
    "embedding",
    "embeddings",
    "mean",
    "per_tok",
    "layer_6",
    "layer_33",
    "1-90",
    "2-91",
    "0",
    "1",
    "x",
    "X",
    "coords",
    "emb",
];
const TEXTS: [&str; 8] = ["ids", "labels", "proteins", "name", "who", "sequence", "sample_ids", "texts"];

fn tree(rng: &mut StdRng) -> Vec<Leaf> {
    let (width, n) = (*[4, 5].choose(rng).unwrap(), rng.random_range(2..6));
    let mut leaves: Vec<Leaf> = vec![];
    for _ in 0..rng.random_range(1..10) {
        let group = GROUPS.choose(rng).unwrap();
        let floats = rng.random_bool(0.75);
        let name = if floats { NAMES.choose(rng).unwrap() } else { TEXTS.choose(rng).unwrap() };
        let path = if group.is_empty() { (*name).to_owned() } else { format!("{group}/{name}") };
        // A name is a dataset or a group.
        let clash = |leaf: &Leaf| {
            let other = leaf.path();
            other == path || other.starts_with(&format!("{path}/")) || path.starts_with(&format!("{other}/"))
        };
        if leaves.iter().any(clash) {
            continue;
        }
        let wide = if rng.random_bool(0.1) { width + 1 } else { width };
        let rows = if rng.random_bool(0.5) { n } else { rng.random_range(1..6) };
        let shape = match rng.random_range(0..10) {
            0..4 => vec![wide],
            4..8 => vec![rows, wide],
            8 => vec![1, rows, wide],
            _ => vec![rows, 2, wide],
        };
        leaves.push(if floats {
            Leaf::Floats(path, shape)
        } else if rng.random_bool(0.3) {
            Leaf::Integers(path, vec![rows])
        } else {
            let repeat = rng.random_bool(0.3);
            Leaf::Texts(
                path,
                (0..rows).map(|row| format!("T{}", if repeat { row % 2 } else { row })).collect(),
            )
        });
    }
    leaves
}

/// What a file gives: its rows in words, or the message without the file's name.
fn outcome(path: &Path, options: &LoadOptions) -> Result<Vec<String>, String> {
    let data = Embeddings::load(&[path.to_owned()], options)
        .map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))?;
    let mut row = vec![0.0; data.d_in()];
    let text = |at: usize| {
        data.row_into(at, &mut row);
        format!("{} {row:?}", data.index().row_id(at))
            .replace(path.file_stem().unwrap().to_str().unwrap(), "STEM")
    };
    let rows: Vec<String> = (0..data.n_rows()).map(text).collect();
    let mut by_block = vec![];
    let files = DataFiles::open(&[path.to_owned()], options).unwrap();
    let mut blocks = files.blocks(40).unwrap();
    while let Some(block) = blocks.next_block().unwrap() {
        by_block.extend((0..block.n_rows()).map(|row| block.index().row_id(row)));
    }
    let whole: Vec<String> = (0..data.n_rows()).map(|row| data.index().row_id(row)).collect();
    assert_eq!(by_block, whole);
    assert_eq!(inspect(path, options).unwrap().n_rows, rows.len());
    Ok(rows)
}

#[test]
fn a_tree_has_one_reading_or_none_in_whatever_order_it_was_written() {
    let folder = Folder::new();
    let mut rng = StdRng::seed_from_u64(18);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..1500 {
        let leaves = tree(&mut rng);
        let mut shuffled = leaves.clone();
        shuffled.shuffle(&mut rng);
        let write = |name: &str, leaves: &[Leaf]| {
            folder.file(name, |file| leaves.iter().for_each(|leaf| leaf.write(file)))
        };
        let options = LoadOptions::default();
        let first = outcome(&write("tree_a.h5", &leaves), &options);
        let second = outcome(&write("tree_b.h5", &shuffled), &options);
        let unnamed =
            |outcome: Result<Vec<String>, String>| outcome.map_err(|text| text.replace("tree_b", "tree_a"));
        assert_eq!(unnamed(first.clone()), unnamed(second), "{leaves:?}");
        match first {
            Ok(rows) => {
                read += 1;
                let ids: std::collections::HashSet<&str> =
                    rows.iter().filter_map(|r| r.split(' ').next()).collect();
                assert_eq!(ids.len(), rows.len(), "{leaves:?}");
            }
            Err(text) => {
                refused += 1;
                assert!(!text.contains('\n') && !text.contains("--skip-bad-rows"), "{text}");
                offers_what_works(&folder.path("tree_a.h5"), &text, &leaves);
            }
        }
    }
    assert!(read > 200 && refused > 200, "{read} read, {refused} refused");
}

/// Each `--dataset` that a message offers names something: what it gives is rows, or a message about that alone.
fn offers_what_works(path: &Path, text: &str, leaves: &[Leaf]) {
    for part in text.split("--dataset ").skip(1) {
        let Some((pattern, _)) = part.split_once('`') else { continue };
        let options =
            LoadOptions { dataset: Some(pattern.trim_matches('\'').to_owned()), ..LoadOptions::default() };
        if let Err(error) = outcome(path, &options) {
            assert!(!error.contains("holds no dataset or group"), "{pattern}: {error} {leaves:?}");
        }
    }
}

#[test]
fn changed_bytes_are_read_or_refused() {
    let folder = Folder::new();
    let mut rng = StdRng::seed_from_u64(180);
    let cases = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases")).unwrap();
    let mut files: Vec<_> = cases
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "h5" || e == "h5ad" || e == "mat"))
        .collect();
    files.sort();
    for path in files {
        let bytes = std::fs::read(&path).unwrap();
        for _ in 0..6 {
            let mut changed = bytes.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..changed.len());
                changed[at] = rng.random();
            }
            let name = folder.path("changed.h5");
            std::fs::write(&name, &changed).unwrap();
            if let Err(error) = Embeddings::load(&[name], &LoadOptions::default()) {
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }
}
