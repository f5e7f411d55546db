//! Small files of the layouts that tools write (`tests/cases`), each with what its owner means: read as that, or stopped
//! with a command that reads it.
#![allow(clippy::unwrap_used)] // Tests stop at what they do not expect.

#[path = "data_fixtures/streamed.rs"]
mod streamed;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use topk_sae::data::{DataFiles, Embeddings, LoadOptions, inspect};
use topk_sae::error::Error;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases")
}

/// One line of `cases.tsv`.
struct Case {
    name: String,
    verdict: String,
    flags: String,
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(folder().join("cases.tsv")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
            let [name, verdict, flags, _] = &fields[..] else { panic!("{line}") };
            Case { name: name.clone(), verdict: verdict.clone(), flags: flags.clone() }
        })
        .collect()
}

/// The options that flags of the command line are.
fn options(flags: &str) -> LoadOptions {
    let mut options = LoadOptions::default();
    let words: Vec<&str> = flags.split_whitespace().map(|word| word.trim_matches('\'')).collect();
    for pair in words.chunks(2) {
        match pair {
            ["--dataset", name] => options.dataset = Some((*name).into()),
            ["--ids", name] => options.ids = Some((*name).into()),
            ["--index", picks] => options.index = picks.parse().unwrap(),
            ["--stored-as", "bfloat16"] => options.bfloat16 = true,
            other => panic!("{other:?}"),
        }
    }
    options
}

/// The header and the values of an array in `.npy`.
fn npy(bytes: &[u8]) -> (String, &[u8]) {
    let len = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    (String::from_utf8(bytes[10..10 + len].to_vec()).unwrap(), &bytes[10 + len..])
}

/// Ids and rows that a file's owner means.
fn meant(name: &str) -> Option<(Vec<String>, Vec<f32>)> {
    let stem = name.split('.').next().unwrap();
    let file = std::fs::File::open(folder().join(format!("{stem}.expect.npz"))).ok()?;
    let mut archive = zip::ZipArchive::new(file).unwrap();
    let mut arrays = BTreeMap::new();
    for name in ["ids.npy", "x.npy"] {
        let mut bytes = vec![];
        archive.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
        arrays.insert(name, bytes);
    }
    let (header, values) = npy(&arrays["ids.npy"]);
    let width: usize = header.split("'<U").nth(1)?.split('\'').next()?.parse().unwrap();
    let letter = |bytes: &[u8]| char::from_u32(u32::from_le_bytes(bytes.try_into().unwrap())).unwrap();
    let text = |bytes: &[u8]| bytes.chunks_exact(4).map(letter).filter(|&c| c != '\0').collect::<String>();
    let ids = values.chunks_exact(4 * width).map(text).collect();
    let (header, values) = npy(&arrays["x.npy"]);
    assert!(header.contains("'<f4'"), "{header}");
    Some((ids, values.chunks_exact(4).map(|v| f32::from_le_bytes(v.try_into().unwrap())).collect()))
}

/// What is wrong with a file that should be read as its owner means.
fn differs(data: &Embeddings, name: &str) -> Option<String> {
    let (ids, x) = meant(name)?;
    if data.n_rows() != ids.len() {
        return Some(format!("{} rows, {} meant", data.n_rows(), ids.len()));
    }
    let width = x.len() / ids.len();
    let wanted: BTreeMap<&str, &[f32]> = ids.iter().map(String::as_str).zip(x.chunks_exact(width)).collect();
    let mut row = vec![0.0; data.d_in()];
    for at in 0..data.n_rows() {
        data.row_into(at, &mut row);
        let mut id = data.index().row_id(at);
        if name == "skbio_embed.h5" {
            // The file names its proteins by their sequences, and these are all alike.
            let (protein, residue) = id.rsplit_once(':').unwrap();
            let number: usize = protein.rsplit_once(':').unwrap().1.parse().unwrap();
            id = format!("P{number:05}:{residue}");
        }
        match wanted.get(id.as_str()) {
            Some(meant) if **meant == row[..] => {}
            // What the scale-offset filter gives differs in the last bit between processors.
            Some(meant)
                if name == "odd_storage.h5" && meant.iter().zip(&row).all(|(a, b)| (a - b).abs() < 1e-6) => {}
            Some(_) => return Some(format!("row {at}, {id}: other values")),
            None => return Some(format!("row {at}: id {id:?}, meant {:?} and so on", ids[0])),
        }
    }
    None
}

/// Loading block by block gives the same rows and ids.
fn differs_in_blocks(path: &Path, options: &LoadOptions, whole: &Embeddings) -> bool {
    let files = DataFiles::open(&[path.to_owned()], options).unwrap();
    let mut blocks = files.blocks(700).unwrap();
    let (mut at, mut differs) = (0, false);
    let (mut a, mut b) = (vec![0.0; whole.d_in()], vec![0.0; whole.d_in()]);
    while let Some(block) = blocks.next_block().unwrap() {
        for row in 0..block.n_rows() {
            block.row_into(row, &mut a);
            whole.row_into(at, &mut b);
            differs |= a != b || block.index().row_id(row) != whole.index().row_id(at);
            at += 1;
        }
    }
    differs || at != whole.n_rows()
}

fn problem(case: &Case) -> Option<String> {
    let path = folder().join(&case.name);
    if case.name.ends_with(".parquet") && !cfg!(feature = "parquet") {
        let error = Embeddings::load(&[path], &LoadOptions::default()).unwrap_err().to_string();
        return (!error.contains("--features parquet")).then_some(error);
    }
    let load = |options: &LoadOptions| Embeddings::load(std::slice::from_ref(&path), options);
    let read = |options: &LoadOptions| match load(options) {
        Ok(data) => {
            streamed::stays_in_files_too(std::slice::from_ref(&path), options, Ok(&data));
            let same = !differs_in_blocks(&path, options, &data) && inspect(&path, options).is_ok();
            differs(&data, &case.name)
                .or_else(|| (!same).then(|| "inspect, train and encode differ".into()))
                .map_or(Ok(data), Err)
        }
        Err(error) => Err(error.to_string()),
    };
    if case.verdict != "stop" {
        return match read(&options(&case.flags)) {
            Ok(data)
                if data.warnings().is_empty() != (case.verdict == "read")
                    && case.name != "skbio_embed.h5" =>
            {
                Some(format!("warnings: {:?}", data.warnings()))
            }
            Ok(_) => None,
            Err(why) => Some(why),
        };
    }
    let error = match load(&LoadOptions::default()) {
        Ok(data) => return Some(format!("read: {:?}", data.index().pieces())),
        Err(error) => error,
    };
    let text = error.to_string();
    println!("{text}");
    if !matches!(error, Error::Data { .. }) || text.contains("--skip-bad-rows") || text.contains('\n') {
        return Some(text);
    }
    if case.flags.is_empty() {
        return None;
    }
    let flag = case.flags.split(' ').next().unwrap();
    if !text.contains(flag) {
        return Some(format!("does not offer {flag}: {text}"));
    }
    read(&options(&case.flags)).err()
}

#[test]
fn every_file_has_one_reading_or_says_which_there_are() {
    let problems: Vec<String> =
        cases().iter().filter_map(|case| Some(format!("{}: {}", case.name, problem(case)?))).collect();
    assert!(problems.is_empty(), "{} of {}:\n{}", problems.len(), cases().len(), problems.join("\n"));
}
