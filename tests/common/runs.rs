//! Real `sae` processes on small data.
#![allow(dead_code, clippy::unwrap_used)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

pub const SAE: &str = env!("CARGO_BIN_EXE_sae");

/// An HDF5 file as `fill` writes it.
///
/// HDF5 locks the file it writes, and a process that another test starts meanwhile inherits that lock and
/// keeps it: so what stands at `path` is a copy, which HDF5 never had open.
pub fn hdf5_file(path: &Path, fill: impl FnOnce(&hdf5::File)) {
    let written = path.with_extension("written");
    let file = hdf5::File::create(&written).unwrap();
    fill(&file);
    file.close().unwrap();
    std::fs::copy(&written, path).unwrap();
    std::fs::remove_file(&written).unwrap();
}

/// Starts a process.
pub fn start(command: &mut Command) -> Child {
    command.spawn().unwrap()
}

fn output(command: &mut Command) -> Output {
    start(command.stdout(Stdio::piped()).stderr(Stdio::piped())).wait_with_output().unwrap()
}

/// A folder with data, and what is made of them.
pub struct Place {
    pub folder: tempfile::TempDir,
}

impl Place {
    /// [`write_data`] as `data.h5`.
    pub fn with_data(rows: usize, d: usize) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        write_data(&place.path("data.h5"), rows, d);
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

/// A matrix with ids, (rows, d) float32, of low rank plus a little noise, so that there is something to learn.
pub fn write_data(path: &Path, rows: usize, d: usize) {
    write_named(path, &(0..rows).map(|n| format!("id{n:04}")).collect::<Vec<_>>(), d);
}

/// The same rows with these ids.
pub fn write_named(path: &Path, ids: &[String], d: usize) {
    write_values(path, ids, &low_rank(ids.len(), d));
}

/// (rows, d) values of low rank plus a little noise.
pub fn low_rank(rows: usize, d: usize) -> Vec<f32> {
    let noise = crate::common::values(rows * d, 5);
    let factors = crate::common::values(rows * 4, 6);
    let basis = crate::common::values(4 * d, 7);
    let value = |n: usize, i: usize| -> f32 {
        let low: f32 = (0..4).map(|r| factors[n * 4 + r] * basis[r * d + i]).sum();
        low + 0.1 * noise[n * d + i]
    };
    (0..rows * d).map(|at| value(at / d, at % d)).collect()
}

/// A matrix of `flat` values with these ids.
pub fn write_values(path: &Path, ids: &[String], flat: &[f32]) {
    let (rows, d) = (ids.len(), flat.len() / ids.len());
    let ids: Vec<hdf5::types::VarLenUnicode> = ids.iter().map(|id| id.parse().unwrap()).collect();
    hdf5_file(path, |file| {
        let matrix = file.new_dataset::<f32>().shape((rows, d)).create("embeddings").unwrap();
        matrix.write_raw(flat).unwrap();
        let names = file.new_dataset::<hdf5::types::VarLenUnicode>().shape(rows).create("ids").unwrap();
        names.write_raw(&ids).unwrap();
    });
}

/// Residues by id: `ids` datasets of (length, d) float32.
pub fn write_residues(path: &Path, ids: usize, length: usize, d: usize) {
    hdf5_file(path, |file| {
        for i in 0..ids {
            let values = crate::common::values(length * d, 100 + i as u32);
            let dataset =
                file.new_dataset::<f32>().shape((length, d)).create(format!("P{i:03}").as_str()).unwrap();
            dataset.write_raw(&values).unwrap();
        }
    });
}

/// `sae` with these arguments, on the CPU unless they name a device: machines with a GPU test the same.
pub fn command<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(args: I) -> Command {
    let mut command = Command::new(SAE);
    command.args(args);
    let named = command.get_args().any(|arg| arg.to_string_lossy().starts_with("--device"));
    if !named {
        command.arg("--device=cpu");
    }
    command
}

/// Runs `sae` to its end.
pub fn sae<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(args: I) -> Output {
    output(&mut command(args))
}

/// Runs `sae` and expects success; returns its standard output.
pub fn sae_ok<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(args: I) -> String {
    let output = sae(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `sae --quiet` and expects failure with one line on standard error; returns status and that line.
pub fn sae_fails<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(args: I) -> (i32, String) {
    told(&output(command(args).arg("--quiet")))
}

/// Fails unless a quiet `sae` failed with one line on standard error; status and that line.
pub fn told(output: &Output) -> (i32, String) {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success(), "expected a failure");
    assert_eq!(text.lines().count(), 1, "expected one line: {text}");
    assert!(text.starts_with("error: "), "{text}");
    (output.status.code().unwrap(), text)
}

/// The columns of `metrics.csv` that a clock does not decide.
pub fn metrics(run: &Path) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_path(run.join("metrics.csv")).unwrap();
    let clock = reader.headers().unwrap().iter().position(|name| name == "rows_per_second").unwrap();
    let fields = |record: csv::StringRecord| {
        let kept = record.iter().enumerate().filter(|(i, _)| *i != clock);
        kept.map(|(_, field)| field.to_owned()).collect()
    };
    reader.records().map(|record| fields(record.unwrap())).collect()
}

/// Checkpoints of a run by rising step, without the best.
pub fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().path());
    let steps = |p: &PathBuf| p.file_name().unwrap().to_string_lossy().starts_with("step-");
    let mut found: Vec<PathBuf> = entries.filter(steps).collect();
    found.sort();
    found
}

/// The tensors of a safetensors file by name, as bytes.
pub fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> =
        file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect();
    all.sort();
    all
}

/// Fails unless two finished runs are the same bits: weights, moments, metrics, split, model, best checkpoint.
pub fn same_run(a: &Path, b: &Path) {
    assert_eq!(metrics(a), metrics(b), "metrics.csv differs");
    for name in ["config.toml", "splits.tsv", "model.safetensors"] {
        assert!(
            std::fs::read(a.join(name)).unwrap() == std::fs::read(b.join(name)).unwrap(),
            "{name} differs"
        );
    }
    let (last_a, last_b) = (checkpoints(a).pop().unwrap(), checkpoints(b).pop().unwrap());
    assert_eq!(last_a.file_name(), last_b.file_name());
    assert!(tensors(&last_a) == tensors(&last_b), "the last checkpoints differ");
    let best = Path::new("checkpoints/best.safetensors");
    assert!(tensors(&a.join(best)) == tensors(&b.join(best)), "the best checkpoints differ");
    let leftovers = |run: &Path| std::fs::read_dir(run.join("checkpoints")).unwrap().count();
    assert_eq!(leftovers(a), leftovers(b), "unfinished files are left");
}
