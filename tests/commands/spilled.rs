//! Codes that do not fit in memory: the same files, and what happens where the disk has no place for them.

use super::Place;
use crate::runs::{SAE, command, sae, sae_fails, sae_ok, start, told, write_residues};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Labels by id, and of some residues; ids that the data lack, cells without a label.
fn write_labels(path: &Path, ids: impl Iterator<Item = String>) {
    let mut text = "id\tkind\tfamily\n".to_owned();
    for (n, id) in ids.enumerate().filter(|(n, _)| n % 11 != 10) {
        text += &format!("{id}\t{}\tf{}\n", ["A", "B", "A; B", "", "C"][n % 5], n % 3);
        if n % 4 == 0 {
            text += &format!("{id}:2\tB\tsite\n");
        }
    }
    fs::write(path, text + "elsewhere\tA\tf0\n").unwrap();
}

/// A run, and data of three shapes with their labels: a matrix with ids, residues by protein, both.
fn place() -> (Place, [&'static str; 3]) {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    write_residues(&place.path("residues.h5"), 50, 23, 16);
    let matrix = || (0..300).map(|n| format!("id{n:04}"));
    let proteins = || (0..50).map(|n| format!("P{n:03}"));
    write_labels(&place.path("data.tsv"), matrix());
    write_labels(&place.path("residues.tsv"), proteins());
    fs::create_dir(place.path("both")).unwrap();
    for name in ["data.h5", "residues.h5"] {
        fs::copy(place.path(name), place.path("both").join(name)).unwrap();
    }
    write_labels(&place.path("both.tsv"), matrix().chain(proteins()));
    (place, ["data.h5", "residues.h5", "both"])
}

/// What a command prints and writes with so much memory, by the names of its output options.
fn made(place: &Place, args: &[&str], outputs: &[&str], memory: &str) -> Vec<Vec<u8>> {
    let files: Vec<PathBuf> = outputs.iter().map(|flag| place.path(&format!("made{flag}"))).collect();
    let mut all: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    for (flag, file) in outputs.iter().zip(&files) {
        all.extend([(*flag).to_owned(), file.display().to_string()]);
    }
    let text = sae_ok(all.into_iter().chain([format!("--memory={memory}"), "--overwrite".into()]));
    [vec![text.into_bytes()], files.iter().map(|file| fs::read(file).unwrap()).collect()].concat()
}

#[test]
fn what_is_written_does_not_depend_on_the_memory() {
    let (place, shapes) = place();
    let run = place.name("run");
    for shape in shapes {
        let data = place.name(shape);
        let labels = place.name(&format!("{}.tsv", shape.trim_end_matches(".h5")));
        let labels = ["--labels", labels.as_str()];
        let base = |name| vec![name, run.as_str(), data.as_str()];
        let with = |name, more: &[&'static str]| [&base(name)[..], &labels, more].concat();
        let features = ["-o", "--associations"];
        for (args, outputs) in [
            (base("features"), &features[..1]),
            ([&base("features")[..], &["--json", "--top=2", "--split=val"]].concat(), &[]),
            (with("features", &["--min-rows=5"]), &features),
            (with("features", &["--min-rows=3", "--pool", "--top=300"]), &features),
            (with("features", &["--min-rows=3", "--columns=kind", "--json"]), &features[1..]),
            (base("report"), &["-o"]),
            (with("report", &["--min-rows=5", "--features=20"]), &["-o"]),
            (with("report", &["--min-rows=3", "--pool", "--json"]), &["-o"]),
            (with("overlap", &["--column=kind", "--permutations=30"]), &["-o", "--plot"]),
            (
                with("overlap", &["--column=kind", "--groups=A,B", "--exclusive", "--json", "--seed=3"]),
                &["-o"],
            ),
            (
                with(
                    "overlap",
                    &[
                        "--column=family",
                        "--groups=f0,f2",
                        "--permutations=20",
                        "--threshold=0.01",
                        "--min-activation=0.02",
                    ],
                ),
                &[],
            ),
        ] {
            let whole = made(&place, &args, outputs, "all");
            assert!(whole.iter().all(|bytes| !bytes.is_empty()));
            // Runs of one entry per latent at least; and some that hold more.
            for memory in ["1", "3K", "1GiB"] {
                let spilled = made(&place, &args, outputs, memory);
                assert!(spilled == whole, "{args:?} differs with --memory={memory}");
            }
        }
    }
}

#[test]
fn a_memory_that_is_no_size_is_refused() {
    let (place, _) = place();
    let output = sae(["features", &place.name("run"), &place.name("data.h5"), "--memory=much"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && text.contains("`much` is not a size such as 8G"), "{text}");
}

/// Commands that have codes for a temporary file, of `data.h5` and of a run at `run`.
fn spilling<'a>(run: &'a str, data: &'a str, labels: &'a str, out: &'a str) -> [Vec<&'a str>; 3] {
    let common = [run, data, "--labels", labels, "--memory=1", "--overwrite", "-o", out];
    let with = |name, more: &[&'static str]| [&[name], &common[..], more].concat();
    [
        with("features", &["--columns=kind"]),
        with("report", &["--columns=kind"]),
        with("overlap", &["--column=kind"]),
    ]
}

/// Names in a folder.
fn names(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    names
}

#[test]
fn a_limit_on_the_size_of_files_is_told_with_the_folder_and_what_to_do() {
    let (place, _) = place();
    let (run, data, labels) = (place.name("run"), place.name("data.h5"), place.name("data.tsv"));
    let before = names(&place.path("run"));
    for args in spilling(&run, &data, &labels, &place.name("out")) {
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -f 2; exec \"$@\"", "sh", SAE, "--quiet", "--device=cpu"]).args(&args);
        let child = start(limited.stdout(Stdio::null()).stderr(Stdio::piped()));
        let (status, text) = told(&child.wait_with_output().unwrap());
        assert!(status == 1 && text.contains(&format!("{run}: cannot write ")), "{text}");
        assert!(text.contains("`ulimit -f unlimited`") && text.contains("--memory (1 B now)"), "{text}");
        assert_eq!(names(&place.path("run")), before);
        assert!(!place.path("out").exists());
    }
}

#[test]
fn a_full_disk_is_told_with_its_folder_and_one_that_cannot_be_written_is_not_used() {
    let (place, _) = place();
    // More codes than the disk has room for.
    let data = place.name("many.h5");
    write_residues(&place.path("many.h5"), 50, 900, 16);
    let (labels, out) = (place.name("residues.tsv"), place.name("out"));
    let disk = place.path("disk");
    fs::create_dir(&disk).unwrap();
    let mount = |options: &str| {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&disk);
        mount.output().is_ok_and(|output| output.status.success())
    };
    if !mount("size=1m") {
        println!("NOT RUN: this user may not mount a small file system; the full disk is not tested here");
        return;
    }
    let run = disk.join("run");
    let checked = std::panic::catch_unwind(|| {
        fs::create_dir(&run).unwrap();
        for name in ["config.toml", "splits.tsv", "model.safetensors"] {
            fs::copy(place.path("run").join(name), run.join(name)).unwrap();
        }
        let name = run.to_str().unwrap();
        for args in &spilling(name, &data, &labels, &out)[..2] {
            let (status, text) = sae_fails(args);
            assert!(status == 1 && text.contains(&format!("{name}: cannot write ")), "{text}");
            assert!(text.contains("free some space there") && text.contains("--memory"), "{text}");
            assert_eq!(names(&run).len(), 3, "something is left on the disk");
            assert!(!Path::new(&out).exists());
        }
        // Read only: the folder of the output takes the file.
        assert!(mount("remount,ro"));
        let args = &spilling(name, &data, &labels, &out)[0];
        sae_ok(args);
        let spilled = fs::read(&out).unwrap();
        sae_ok(args.iter().map(|arg| if *arg == "--memory=1" { "--memory=all" } else { arg }));
        assert!(fs::read(&out).unwrap() == spilled);
    });
    let unmounted = Command::new("umount").arg(&disk).status().unwrap().success();
    assert!(checked.is_ok() && unmounted);
}

#[test]
fn an_interruption_leaves_nothing_of_what_was_spilled() {
    let (place, _) = place();
    let data = place.name("many.h5");
    write_residues(&place.path("many.h5"), 50, 4000, 16);
    let (run, labels) = (place.name("run"), place.name("residues.tsv"));
    let before = names(&place.path("run"));
    for args in spilling(&run, &data, &labels, &place.name("out")) {
        for signal in ["-INT", "-KILL"] {
            // A fast machine may be done before the signal: it comes earlier then.
            let ended = [400, 150, 50, 15].into_iter().any(|ms| {
                let child = start(command(&args).arg("--quiet").stdout(Stdio::null()).stderr(Stdio::piped()));
                std::thread::sleep(std::time::Duration::from_millis(ms));
                Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
                let output = child.wait_with_output().unwrap();
                let whole = output.status.success();
                assert!(whole || !place.path("out").exists());
                let _ = fs::remove_file(place.path("out"));
                !whole
            });
            assert!(ended, "{args:?} was never interrupted");
            assert_eq!(names(&place.path("run")), before, "{args:?}");
        }
    }
}
