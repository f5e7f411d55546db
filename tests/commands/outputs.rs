//! Every output option of every command: what it refuses to replace, and what it can write into.

use super::{Place, write_data};
use crate::runs::{hdf5_file, sae_fails, sae_ok};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Files of a run, as `sae train` and `sae report` name them.
const RUN_FILES: [&str; 13] = [
    "config.toml",
    "splits.tsv",
    "metrics.csv",
    "events.out.tfevents.topk-sae",
    "model.safetensors",
    "summary.json",
    "relaxed_topk_sae_mse.png",
    "relaxed_topk_sae_mae.png",
    "latents_alive.png",
    "report.html",
    ".lock",
    "checkpoints/best.safetensors",
    "checkpoints/step-000000000060.safetensors",
];

/// Two runs, data, labels, and an exported model.
pub fn place() -> Place {
    let place = Place::with_data(300, 16);
    for run in ["run", "other"] {
        place.train(run, &["--tensorboard"]);
        sae_ok(["report", &place.name(run), "--quiet"]);
    }
    let line = |n: usize| format!("id{n:04}\t{}\n", if n.is_multiple_of(2) { "even" } else { "odd" });
    let lines: String = (0..300).map(line).collect();
    fs::write(place.path("labels.tsv"), format!("id\tkind\n{lines}")).unwrap();
    sae_ok(["export", &place.name("run"), "--format=saelens", "-o", &place.name("exported")]);
    place
}

/// Every option that names a file to write: a command without it, and the option.
pub fn options(place: &Place) -> Vec<(Vec<String>, &'static str)> {
    let words = |text: &str| -> Vec<String> {
        let word = |word: &str| match word.strip_prefix('@') {
            Some(name) => place.name(name),
            None => word.to_owned(),
        };
        text.split(' ').map(word).collect()
    };
    [
        ("encode @run @data.h5", "--out"),
        ("encode @run @data.h5 --format=tsv", "--out"),
        ("features @run @data.h5", "--out"),
        ("features @run @data.h5 --labels @labels.tsv", "--associations"),
        ("report @run", "--out"),
        ("overlap @run @data.h5 --labels @labels.tsv --permutations=10", "--out"),
        ("overlap @run @data.h5 --labels @labels.tsv --permutations=10", "--plot"),
        ("compare @run @other", "--plot"),
        ("import @exported", "--out"),
    ]
    .map(|(text, flag)| (words(text), flag))
    .to_vec()
}

pub fn with(args: &[String], flag: &str, path: &Path, more: &[&str]) -> Vec<String> {
    let own = [flag.to_owned(), path.to_str().unwrap().to_owned()];
    args.iter().cloned().chain(own).chain(more.iter().map(|s| (*s).to_owned())).collect()
}

/// Fails unless the command is refused as wrong usage by a line with the option and these words.
pub fn refused(args: &[String], words: &[&str]) {
    let (status, text) = sae_fails(args);
    assert_eq!(status, 2, "{args:?}: {text}");
    assert!(words.iter().all(|word| text.contains(word)), "{args:?}: {words:?} are not all in: {text}");
}

/// Every file below a folder with its bytes.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = vec![];
    for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap()) {
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(contents(&entry.path())),
            false => all.push((entry.path(), fs::read(entry.path()).unwrap())),
        }
    }
    all.sort();
    all
}

fn names(folder: &Path) -> Vec<String> {
    let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

#[test]
fn no_output_replaces_a_file_without_overwrite_and_with_it_the_mode_stays() {
    let place = place();
    fs::create_dir(place.path("new")).unwrap();
    for (i, (args, flag)) in options(&place).into_iter().enumerate() {
        let out = place.path(&format!("new/{i}"));
        let mine = old(&args, flag);
        fs::write(&out, mine).unwrap();
        fs::set_permissions(&out, Permissions::from_mode(0o640)).unwrap();
        // A file of the name that temporary files once had is nobody's but the user's.
        let beside = place.path(&format!("new/{i}.tmp"));
        fs::write(&beside, "also mine").unwrap();
        refused(&with(&args, flag, &out, &[]), &[flag, out.to_str().unwrap(), "--overwrite"]);
        assert_eq!(fs::read(&out).unwrap(), mine);
        sae_ok(with(&args, flag, &out, &["--overwrite"]));
        assert_ne!(fs::read(&out).unwrap(), mine, "{args:?}");
        assert_eq!(out.metadata().unwrap().mode() & 0o777, 0o640, "{args:?}");
        assert_eq!(fs::read(&beside).unwrap(), b"also mine", "{args:?}");
        fs::remove_file(&beside).unwrap();
    }
    assert_eq!(names(&place.path("new")).len(), options(&place).len(), "a temporary file is left");
}

#[test]
fn a_new_output_has_the_mode_that_any_new_file_has() {
    let place = place();
    fs::write(place.path("plain"), "").unwrap();
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
    for (i, (args, flag)) in options(&place).into_iter().enumerate() {
        let out = place.path(&format!("new{i}"));
        sae_ok(with(&args, flag, &out, &[]));
        assert_eq!(mode(&out), mode(&place.path("plain")), "{args:?}");
    }
}

#[test]
fn no_output_replaces_a_file_of_a_run_by_whatever_path() {
    let place = place();
    let runs = || [contents(&place.path("run")), contents(&place.path("other"))];
    let before = runs();
    symlink(place.path("run"), place.path("link")).unwrap();
    symlink("run/model.safetensors", place.path("model")).unwrap();
    symlink("checkpoints/new.safetensors", place.path("run/dangling")).unwrap();
    fs::hard_link(place.path("run/model.safetensors"), place.path("second")).unwrap();
    for (args, flag) in options(&place) {
        for run in ["run", "other"] {
            for file in RUN_FILES {
                // The one that may: a report of this very run.
                if !(args[0] == "report" && (run, file) == ("run", "report.html")) {
                    let out = place.path(run).join(file);
                    refused(&with(&args, flag, &out, &["--overwrite"]), &[flag, file, "a file of the run"]);
                }
            }
        }
        for out in ["link/model.safetensors", "exported/../run/summary.json", "model", "run/dangling"] {
            refused(
                &with(&args, flag, &place.path(out), &["--overwrite"]),
                &[flag, out, "a file of the run"],
            );
        }
        if args[0] != "import" && args[0] != "compare" {
            refused(&with(&args, flag, &place.path("second"), &["--overwrite"]), &[flag, "second", "input"]);
        }
    }
    fs::remove_file(place.path("run/dangling")).unwrap();
    assert!(runs() == before, "a run's file was touched");
    let report = [&place.name("run"), "--overwrite", "--quiet"].map(str::to_owned);
    sae_ok(["report".to_owned()].iter().chain(&report));
    refused(&["report".to_owned(), place.name("run")], &["report.html", "--overwrite"]);
}

#[test]
fn a_run_s_names_are_kept_free_where_the_file_is_not_there_yet() {
    let place = place();
    let run = place.path("run");
    for file in ["model.safetensors", "summary.json", "checkpoints/best.safetensors"] {
        fs::remove_file(run.join(file)).unwrap();
    }
    for file in ["model.safetensors", "summary.json", "checkpoints/best.safetensors", "checkpoints/x.h5"] {
        refused(&with(&["import".into(), place.name("exported")], "-o", &run.join(file), &[]), &[file]);
        for args in [["export", "--format=saelens"], ["train", "--steps=5"]] {
            let (command, more) = (args[0].to_owned(), args[1]);
            let data = place.name(if command == "train" { "data.h5" } else { "other" });
            let args = with(&[command, data, more.to_owned()], "--out", &run.join(file), &["--overwrite"]);
            refused(&args, &["--out", file]);
        }
    }
    // Other files beside them are the user's own business.
    sae_ok(with(&["import".into(), place.name("exported")], "-o", &run.join("mine.safetensors"), &[]));
}

#[test]
fn no_output_replaces_what_the_command_reads() {
    let place = place();
    fs::hard_link(place.path("data.h5"), place.path("again.h5")).unwrap();
    symlink("labels.tsv", place.path("link.tsv")).unwrap();
    fs::copy(place.path("run/model.safetensors"), place.path("alone.safetensors")).unwrap();
    let inputs = ["data.h5", "again.h5", "labels.tsv", "link.tsv"];
    let before: Vec<Vec<u8>> = inputs.iter().map(|name| fs::read(place.path(name)).unwrap()).collect();
    for (args, flag) in options(&place) {
        for input in inputs {
            let read = |name: &str| args.contains(&place.name(name));
            let used = if input.ends_with(".h5") {
                read("data.h5") || args[0] == "report"
            } else {
                read("labels.tsv")
            };
            if used {
                refused(&with(&args, flag, &place.path(input), &["--overwrite"]), &[flag, input, "input"]);
            }
        }
        let model: Vec<String> = args
            .iter()
            .map(|arg| if *arg == place.name("run") { place.name("alone.safetensors") } else { arg.clone() })
            .collect();
        if !["report", "compare", "import"].contains(&args[0].as_str()) {
            let out = place.path("alone.safetensors");
            refused(&with(&model, flag, &out, &["--overwrite"]), &[flag, "alone.safetensors", "input"]);
        }
    }
    let import = ["import".to_owned(), place.name("exported")];
    for input in ["exported/sae_weights.safetensors", "exported/cfg.json", "exported/topk_sae.json"] {
        refused(&with(&import, "--out", &place.path(input), &["--overwrite"]), &["--out", input, "input"]);
    }
    let after: Vec<Vec<u8>> = inputs.iter().map(|name| fs::read(place.path(name)).unwrap()).collect();
    assert!(before == after, "an input was touched");
}

#[test]
fn no_output_replaces_a_file_that_the_data_take_values_from() {
    let place = place();
    write_data(&place.path("linked.h5"), 300, 16);
    write_data(&place.path("virtual.h5"), 300, 16);
    fs::write(place.path("raw.bin"), [0; 300 * 16 * 4]).unwrap();
    let index = place.path("index.h5");
    hdf5_file(&index, |file| {
        file.link_external("linked.h5", "/embeddings", "embeddings").unwrap();
        file.link_external("linked.h5", "/ids", "ids").unwrap();
        let group = file.create_group("more").unwrap();
        let build = group.new_dataset::<f32>().shape((300, 16)).virtual_map(
            "virtual.h5",
            "/embeddings",
            (300, 16),
            ..,
            (300, 16),
            ..,
        );
        build.create("virtual").unwrap();
        group
            .new_dataset::<f32>()
            .shape((300, 16))
            .external("raw.bin", 0, 300 * 16 * 4)
            .create("raw")
            .unwrap();
    });
    let names = ["linked.h5", "virtual.h5", "raw.bin"];
    let before: Vec<Vec<u8>> = names.iter().map(|name| fs::read(place.path(name)).unwrap()).collect();
    let (run, index, labels) = (place.name("run"), place.name("index.h5"), place.name("labels.tsv"));
    let how = ["--dataset", "embeddings", "--labels", &labels];
    for (command, flag) in [("features", "--out"), ("features", "--associations"), ("overlap", "--plot")] {
        let args: Vec<String> =
            [&[command, &run, &index][..], &how].concat().iter().map(|s| s.to_string()).collect();
        for name in names {
            let out = place.path(name);
            refused(&with(&args, flag, &out, &["--overwrite"]), &[flag, name, "input", "index.h5"]);
        }
        let _ = fs::remove_file(place.path("out"));
        sae_ok(with(&args, flag, &place.path("out"), &[]));
    }
    let after: Vec<Vec<u8>> = names.iter().map(|name| fs::read(place.path(name)).unwrap()).collect();
    assert!(before == after);
}

#[test]
fn a_folder_that_is_replaced_loses_nothing_but_what_the_command_made() {
    let place = place();
    let mine = [("exported/notes.txt", "export"), ("run/checkpoints/notes.txt", "train")];
    for (name, _) in mine {
        fs::write(place.path(name), "mine").unwrap();
    }
    let export = ["export".to_owned(), place.name("run"), "--format=saelens".into()];
    refused(&with(&export, "--out", &place.path("exported"), &["--overwrite"]), &["--out", "notes.txt"]);
    let train = ["train".to_owned(), place.name("data.h5"), "--steps=5".into(), "--latents=64".into()];
    refused(&with(&train, "--out", &place.path("run"), &["--overwrite"]), &["--out", "notes.txt"]);
    for (name, _) in mine {
        fs::remove_file(place.path(name)).unwrap();
    }
    // Data inside the folder to be replaced, under a name that a run has.
    let data = place.name("other/checkpoints/best.safetensors");
    fs::copy(place.path("data.h5"), &data).unwrap();
    let train = ["train".to_owned(), data.clone(), "--steps=5".into(), "--latents=64".into()];
    refused(
        &with(&train, "--out", &place.path("other"), &["--overwrite"]),
        &["--out", "best.safetensors", "input"],
    );
    sae_ok(with(&export, "--out", &place.path("exported"), &["--overwrite"]));
}

#[test]
fn two_outputs_of_a_command_are_two_files() {
    let place = place();
    let out = place.path("one");
    symlink("one", place.path("link")).unwrap();
    fs::create_dir(place.path("sub")).unwrap();
    for (command, second) in [("overlap", "--plot"), ("features", "--associations")] {
        let args =
            [command, &place.name("run"), &place.name("data.h5"), "--labels", &place.name("labels.tsv")];
        let args = args.map(str::to_owned);
        for other in ["one", "link", "sub/../one"] {
            let both = with(&with(&args, "--out", &out, &[]), second, &place.path(other), &["--overwrite"]);
            refused(&both, &["--out", second, "same file"]);
        }
        assert!(!out.exists());
    }
}

#[test]
fn a_link_stays_a_link_and_its_target_is_written() {
    let place = place();
    fs::create_dir_all(place.path("far/away")).unwrap();
    fs::create_dir(place.path("links")).unwrap();
    for (i, (args, flag)) in options(&place).into_iter().enumerate() {
        let (link, target) = (place.path(&format!("links/{i}")), place.path(&format!("far/away/{i}")));
        let middle = place.path(&format!("links/middle{i}"));
        symlink(&target, &middle).unwrap();
        symlink(format!("middle{i}"), &link).unwrap();
        // The first makes the target, the second finds it there.
        sae_ok(with(&args, flag, &link, &[]));
        let made = fs::read(&target).unwrap();
        assert!(!made.is_empty(), "{args:?}");
        refused(&with(&args, flag, &link, &[]), &[flag, "--overwrite"]);
        fs::write(&target, old(&args, flag)).unwrap();
        sae_ok(with(&args, flag, &link, &["--overwrite"]));
        assert!(fs::read(&target).unwrap() == made || args[0] == "encode", "{args:?}");
        for link in [link, middle] {
            assert!(fs::symlink_metadata(link).unwrap().is_symlink(), "{args:?}: the link was replaced");
        }
    }
    assert_eq!(names(&place.path("far/away")).len(), options(&place).len());
    assert_eq!(names(&place.path("links")).len(), 2 * options(&place).len());
    let link = place.path("nowhere");
    symlink("no/such/folder/file", &link).unwrap();
    for (args, flag) in options(&place) {
        let (status, text) = sae_fails(with(&args, flag, &link, &[]));
        assert!(status == 1 && text.contains(flag) && text.contains("no/such/folder"), "{text}");
        // A circle of links leads nowhere.
        fs::remove_file(&link).unwrap();
        symlink(&link, &link).unwrap();
        let (status, text) = sae_fails(with(&args, flag, &link, &[]));
        assert!(status != 0 && text.contains("nowhere"), "{text}");
        fs::remove_file(&link).unwrap();
        symlink("no/such/folder/file", &link).unwrap();
    }
}

#[test]
fn a_run_and_an_export_go_into_the_folder_that_a_link_names() {
    let place = place();
    let make = |args: &[&str], link: &Path, more: &[&str]| {
        let args: Vec<String> = args.iter().map(|s| (*s).to_owned()).collect();
        sae_ok(with(&args, "--out", link, more));
    };
    let (data, run) = (place.name("data.h5"), place.name("run"));
    let train = ["train", &data, "--steps=5", "--latents=64", "--quiet"];
    let export = ["export", &run, "--format=saelens"];
    for (args, file) in [(&train[..], "model.safetensors"), (&export, "cfg.json")] {
        let (link, target) =
            (place.path(&format!("link-{}", args[0])), place.path(&format!("far/{}", args[0])));
        symlink(&target, &link).unwrap();
        // Nothing is there, then a folder that the command made, then an empty folder.
        fs::create_dir_all(place.path("far")).unwrap();
        make(args, &link, &[]);
        make(args, &link, &["--overwrite"]);
        fs::remove_dir_all(&target).unwrap();
        fs::create_dir(&target).unwrap();
        make(args, &link, &[]);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink(), "the link was replaced");
        assert!(target.join(file).is_file());
    }
    sae_ok(["train", "--resume", &place.name("link-train"), "--quiet"]);
    assert_eq!(names(&place.path("far")), ["export", "train"], "something is left beside the folders");
}

/// What a file of each kind begins with.
const STARTS: [(&str, &[u8]); 4] = [
    ("text", b"id\tkind\nid0001\teven\n"),
    ("png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
    ("hdf5", b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0"),
    ("safetensors", b"\x40\0\0\0\0\0\0\0{\"w_enc\":{\"dtype\""),
];

/// The kind of file that the option of a command writes.
fn kind(args: &[String], flag: &str) -> &'static str {
    match (args[0].as_str(), flag) {
        (_, "--plot") => "png",
        ("encode", _) if args.last().unwrap() != "--format=tsv" => "hdf5",
        ("import", _) => "safetensors",
        _ => "text",
    }
}

/// An old file of that kind.
fn old(args: &[String], flag: &str) -> &'static [u8] {
    STARTS.iter().find(|(name, _)| *name == kind(args, flag)).unwrap().1
}

#[test]
fn overwrite_replaces_a_file_of_the_kind_that_is_written_and_no_other() {
    let place = place();
    for (mut args, flag) in options(&place) {
        let kind = kind(&args, flag);
        let target = place.name("target");
        args.extend([flag.to_owned(), target.clone(), "--overwrite".to_owned()]);
        for (name, start) in STARTS {
            fs::write(&target, start).unwrap();
            if name == kind {
                sae_ok(&args);
                assert_ne!(fs::read(&target).unwrap(), start, "{args:?}: was not written");
                continue;
            }
            let (status, line) = sae_fails(&args);
            assert!(status == 2 && line.contains("--overwrite") && line.contains("rm "), "{args:?}: {line}");
            assert_eq!(fs::read(&target).unwrap(), start, "{args:?}");
        }
    }
}

#[test]
fn the_data_of_a_run_are_not_replaced_by_commands_that_read_the_run() {
    let place = place();
    // A plot that is the run's data: as bad a case as there can be, for its kind fits.
    fs::rename(place.path("data.h5"), place.path("kept.h5")).unwrap();
    fs::write(place.path("data.h5"), STARTS[1].1).unwrap();
    let (run, other, data) = (place.name("run"), place.name("other"), place.name("data.h5"));
    let (status, line) = sae_fails(["compare", &run, &other, "--plot", &data, "--overwrite"]);
    assert!(status == 2 && line.contains("is an input"), "{line}");
    assert_eq!(fs::read(place.path("data.h5")).unwrap(), STARTS[1].1);
}
