//! Damaged files of every format: each is read or refused in one line. No panic, no crash, none that takes longer than half a
//! minute, and no allocation beyond the memory that there is, here 1 GiB: files here are small, and one that claims such a
//! shape must be met with an error, where a failed allocation would end the process. The files come in a fixed order, from
//! the first on (SAE_FUZZ_FROM) for a minute (SAE_FUZZ_SECONDS).
//!
//! HDF5's own library does not survive all damage: where it ends the process the file's number is printed, and the test
//! fails only if there are many.
#![allow(clippy::unwrap_used)] // Tests stop at what they do not expect.

mod data_fixtures;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use data_fixtures::Folder;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use topk_sae::data::{DataFiles, Embeddings, LoadOptions, inspect};
use topk_sae::rows::RowSource;

const MEMORY: u64 = 1 << 30;

/// The files of the cases, with their endings.
fn seeds() -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let endings = ["h5", "h5ad", "mat", "npy", "safetensors", "parquet"];
    let mut all: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| endings.iter().any(|ending| e == *ending)))
        .collect();
    all.sort();
    all.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Some damage: bytes, numbers that are limits, parts that are missing, doubled or in another's place.
fn damage(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    let limits =
        [0, 1, 0x7f, 0xff, 0x100, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, u64::MAX >> 1, u64::MAX];
    for _ in 0..rng.random_range(1..6) {
        let n = bytes.len();
        if n < 16 {
            return;
        }
        // Structure is mostly at the start.
        let within = if rng.random_bool(0.5) { n.min(4096) } else { n };
        let at = rng.random_range(0..within - 8);
        match rng.random_range(0..8) {
            0..3 => bytes[at] = rng.random(),
            3 => bytes[at] ^= 1 << rng.random_range(0..8),
            4 => {
                let size = *[2, 4, 8].choose(rng).unwrap();
                let value = limits.choose(rng).unwrap().to_le_bytes();
                bytes[at..at + size].copy_from_slice(&value[..size]);
            }
            5 => {
                let value = rng.random_range(0..n as u64).to_le_bytes();
                bytes[at..at + 8].copy_from_slice(&value);
            }
            6 => {
                let len = rng.random_range(1..64.min(n - at));
                let from = rng.random_range(0..n - len);
                bytes.copy_within(from..from + len, at);
            }
            _ if rng.random_bool(0.3) => bytes.truncate(at),
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }
}

fn options(rng: &mut StdRng) -> LoadOptions {
    let mut options = LoadOptions::default();
    if rng.random_bool(0.7) {
        return options;
    }
    let names = ["/", "*", "*/*", "embeddings", "layer_33", "X", "obsm/X_scGPT", "data", "x"];
    options.dataset = rng.random_bool(0.5).then(|| (*names.choose(rng).unwrap()).to_owned());
    let ids = ["row", "file", "@original_id", "ids", "obs/_index", "meta.id"];
    options.ids = rng.random_bool(0.3).then(|| (*ids.choose(rng).unwrap()).to_owned());
    options.group_by = rng.random_bool(0.1).then(|| "obs/donor".to_owned());
    options.transpose = rng.random_bool(0.2);
    options.bfloat16 = rng.random_bool(0.2);
    if rng.random_bool(0.2) {
        options.index = "0=0".parse().unwrap();
    }
    options
}

/// How long one file may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Reads the file `n` in every way; what comes of it must be consistent, and errors one line.
fn try_file(n: u64, seeds: &[(PathBuf, Vec<u8>)], folder: &Folder) {
    let mut rng = StdRng::seed_from_u64(n);
    let (seed, bytes) = &seeds[n as usize % seeds.len()];
    let mut changed = bytes.clone();
    damage(&mut changed, &mut rng);
    let path = folder.path(&format!("damaged.{}", seed.extension().unwrap().display()));
    // A new file each time: the library knows files by their inodes, and does not close every damaged one.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, &changed).unwrap();
    if let Ok(keep) = std::env::var("SAE_FUZZ_KEEP") {
        std::fs::write(keep, &changed).unwrap();
    }
    let options = options(&mut rng);
    let paths = [path];
    let line = |error: &topk_sae::error::Error| {
        let text = error.to_string();
        assert!(!text.contains('\n'), "file {n}, from {}: {text}", seed.display());
    };
    // The rows leave before others are read: both need not fit the memory.
    let loaded = Embeddings::load(&paths, &options).map(|data| data.n_rows());
    match &loaded {
        Ok(rows) => {
            let shown = inspect(&paths[0], &options);
            let alike = match &shown {
                // On damaged files the library reads memory that was never written, so what it gives and says can vary.
                Ok(shown) => shown.n_rows + shown.non_finite_rows == *rows,
                Err(error) => error.to_string().contains("HDF5 cannot read it"),
            };
            assert!(alike, "file {n}, from {}: {rows} rows, inspect {shown:?}", seed.display());
        }
        Err(error) => line(error),
    }
    // In their file, read as training does it. A shape that no memory holds would be read for hours, unwritten as it is.
    let streamed = || {
        let data = Embeddings::load_within(&paths, &options, 256)?;
        let n = data.n_rows().min(500) as u32;
        let mut out = vec![0.0; n as usize * data.d_in()];
        data.hold(&[data.block_of(n.saturating_sub(1))], &[])?;
        data.read(&(0..n).rev().collect::<Vec<u32>>(), &mut out)?;
        Ok(data.n_rows())
    };
    if let Ok(meant) = &loaded {
        match streamed() {
            Ok(rows) => assert_eq!(rows, *meant, "file {n}, from {}, in its file", seed.display()),
            Err(error) => line(&error),
        }
    }
    let blocks = DataFiles::open(&paths, &options).and_then(|files| {
        let (mut blocks, mut rows) = (files.blocks(1 << 12)?, 0);
        while let Some(block) = blocks.next_block()? {
            rows += block.n_rows();
        }
        Ok(rows)
    });
    match blocks {
        Ok(rows) => assert!(
            loaded.as_ref().map_or(true, |loaded| *loaded == rows),
            "file {n}, from {}: {rows} rows in blocks",
            seed.display()
        ),
        Err(error) => line(&error),
    }
}

/// Reads files from number `first` on until `until`, and says which it begins: whoever reads that knows which ended it.
fn read_on(first: u64, until: Duration) {
    let limit = libc::rlimit { rlim_cur: MEMORY, rlim_max: MEMORY };
    // SAFETY: `limit` is a valid structure that lives until the call is done.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
    let (seeds, folder, began) = (seeds(), Folder::new(), Instant::now());
    static RUNNING: AtomicU64 = AtomicU64::new(0);
    std::thread::spawn(|| {
        let mut seen = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let now = RUNNING.load(Ordering::Relaxed);
            if now != seen.0 {
                seen = (now, Instant::now());
            } else if seen.1.elapsed() > PATIENCE {
                eprintln!("file {now} takes too long");
                std::process::abort();
            }
        }
    });
    let mut n = first;
    loop {
        println!("file {n} {}", seeds[n as usize % seeds.len()].0.display());
        RUNNING.store(n, Ordering::Relaxed);
        try_file(n, &seeds, &folder);
        n += 1;
        if began.elapsed() >= until {
            return;
        }
    }
}

/// Reads files from number `first` on in a process of its own, so that one that ends it does not hide those after it.
fn in_a_child(first: u64, seconds: u64) -> Output {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "damaged_files_are_read_or_refused_in_one_line", "--nocapture"]);
    child.env("SAE_FUZZ_CHILD", "1").env("SAE_FUZZ_FROM", first.to_string());
    child.env("SAE_FUZZ_SECONDS", seconds.to_string()).output().unwrap()
}

/// Whether what ended a process on a file made from `seed` is a fault of HDF5's library, or memory that was nearly enough.
/// A Rust panic exits with a code; a failed allocation says how large it was.
fn is_foreign(run: &Output, seed: &Path) -> bool {
    let errors = String::from_utf8_lossy(&run.stderr);
    let size = errors
        .split("memory allocation of ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    let hdf5 = seed.extension().is_some_and(|ending| ["h5", "h5ad", "mat"].iter().any(|e| ending == *e));
    run.status.signal().is_some() && size.map_or(hdf5, |size| size < MEMORY / 16)
}

#[test]
fn damaged_files_are_read_or_refused_in_one_line() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let first = number("SAE_FUZZ_FROM").unwrap_or(0);
    if std::env::var("SAE_FUZZ_CHILD").is_ok() {
        read_on(first, Duration::from_secs(number("SAE_FUZZ_SECONDS").unwrap()));
        return;
    }
    let (until, began) = (Duration::from_secs(number("SAE_FUZZ_SECONDS").unwrap_or(60)), Instant::now());
    let (mut next, mut failed, mut foreign) = (first, vec![], vec![]);
    while let Some(left) = until.checked_sub(began.elapsed()).filter(|left| left.as_secs() > 0) {
        let run = in_a_child(next, left.as_secs());
        let text = String::from_utf8_lossy(&run.stdout);
        let begun = |line: &str| {
            let (number, seed) = line.strip_prefix("file ")?.split_once(' ')?;
            Some((number.parse::<u64>().ok()?, PathBuf::from(seed)))
        };
        let (last, seed) = text.lines().rev().find_map(begun).expect("it reads at least one file");
        next = last + 1;
        if run.status.success() {
            continue;
        }
        // Where the library damages memory, a file after it may end the process: alone it does not.
        let alone = in_a_child(last, 0);
        if run.status.signal().is_some() && alone.status.success() || is_foreign(&run, &seed) {
            foreign.push(last);
        } else {
            let errors = String::from_utf8_lossy(&run.stderr);
            eprintln!("file {last}, from {}, ended the process:\n{errors}", seed.display());
            failed.push(last);
        }
    }
    println!(
        "{} damaged files in {} s; HDF5's library, or memory that was nearly enough, ended {foreign:?}",
        next - first,
        until.as_secs()
    );
    assert!(
        failed.is_empty(),
        "{failed:?} ended the process; see one with SAE_FUZZ_FROM=N SAE_FUZZ_SECONDS=1"
    );
    // HDF5 1.10.8 fails on about one in a thousand of these files. Many more would mean that a check that `sae` makes before it
    // asks the library is gone.
    assert!(
        200 * foreign.len() as u64 <= (next - first).max(1000),
        "too many faults in HDF5's library: {foreign:?}"
    );
}
