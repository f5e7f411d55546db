//! Tests of `devices.rs`.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::places::{Place, files_in, places};
use super::*;

fn environment(pairs: &[(&str, &Path)]) -> impl Fn(&str) -> Option<String> {
    let pairs: BTreeMap<String, String> =
        pairs.iter().map(|(k, v)| ((*k).to_owned(), v.display().to_string())).collect();
    move |name| pairs.get(name).cloned()
}

#[test]
fn this_machine_is_described_whatever_it_has() {
    let report = find();
    assert!(report.cpu.threads > 0);
    assert_eq!(report.libraries.len(), 4);
    assert!(!report.looked_in.is_empty());
    for library in &report.libraries {
        assert_eq!(library.found, library.loader_opens || library.path.is_some());
    }
    let text = report.to_string();
    let device = if report.usable_gpus > 0 { "cuda:0" } else { "the CPU: " };
    let note = text.lines().last().unwrap();
    assert!(note.starts_with("`--device auto` takes ") && note.contains(device), "{text}");
    let nvrtc = &report.libraries[1];
    assert_eq!(nvrtc.version.is_some(), !report.compiles_for.is_empty(), "{text}");
    assert!(!report.compiles_for.contains(&"7.5".to_owned()), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["libraries"][0]["file"], "libcuda.so");
}

#[test]
fn without_a_driver_the_report_says_so_and_names_the_places() {
    let report = find();
    if report.libraries[0].loader_opens {
        eprintln!("SKIPPED: this machine has an NVIDIA driver");
        return;
    }
    assert!(report.gpus.is_empty() && report.driver_cuda.is_none());
    let text = report.to_string();
    assert!(text.contains("GPU        none found"), "{text}");
    assert!(text.contains("system loader"), "{text}");
}

/// A folder with a file for each of `files`.
fn filled(folder: &Path, files: &[&str]) {
    std::fs::create_dir_all(folder).unwrap();
    files.iter().for_each(|name| std::fs::write(folder.join(name), "").unwrap());
}

#[test]
fn a_library_in_a_python_environment_is_found_there() {
    let folder = tempfile::tempdir().unwrap();
    let venv = folder.path().join("venv");
    let lib = venv.join("lib/python3.11/site-packages/nvidia/cu13/lib");
    filled(&lib, &["libcublas.so.13", "libcublasLt.so.13", "libnvrtc-builtins.so.13.0"]);
    let places = places(&environment(&[("VIRTUAL_ENV", &venv)]), folder.path());
    let expected = Place { reason: "VIRTUAL_ENV".into(), folder: lib.clone() };
    assert!(places.contains(&expected), "{places:?}");
    assert_eq!(files_in(&lib, "libcublas.so"), [lib.join("libcublas.so.13")]);
    assert_eq!(
        files_in(&lib, "libnvrtc.so"),
        [] as [std::path::PathBuf; 0],
        "the builtins are another library"
    );
}

#[test]
fn names_of_one_file_count_once_and_copies_of_several_versions_each() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), &["libnvrtc.so.11.2", "libnvrtc.so.12.4.127", "libnvrtc.sock"]);
    for name in ["libnvrtc.so.12", "libnvrtc.so"] {
        std::os::unix::fs::symlink("libnvrtc.so.12.4.127", folder.path().join(name)).unwrap();
    }
    let found = files_in(folder.path(), "libnvrtc.so");
    assert_eq!(found, ["libnvrtc.so", "libnvrtc.so.11.2"].map(|name| folder.path().join(name)));
}

#[test]
fn every_usual_place_of_a_toolkit_and_of_pip_is_looked_into() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let wheel =
        |prefix: &str, packages: &str| at(prefix).join("lib").join(packages).join("nvidia/cublas/lib");
    let bin = at("usr/bin");
    filled(&bin, &["python3"]);
    filled(&at("opt/torch/.venv/bin"), &[]);
    std::os::unix::fs::symlink(at("usr/bin/python3"), at("opt/torch/.venv/bin/python3")).unwrap();
    filled(&at("links"), &[]);
    std::os::unix::fs::symlink("../opt/torch/.venv/bin/python3", at("links/python3")).unwrap();
    filled(&at("home/.pyenv/shims"), &["python3"]);
    std::fs::write(at("home/.pyenv/version"), "3.12.3\n").unwrap();
    filled(&at("conda/conda-meta"), &[]);
    let wheels = [
        ("pip install --user", wheel("home/.local", "python3.11/site-packages")),
        ("system's Python", wheel("usr/local", "python3.11/dist-packages")),
        ("python3 on PATH", wheel("opt/torch/.venv", "python3.12/site-packages")),
        ("pyenv", wheel("home/.pyenv/versions/3.12.3", "python3.12/site-packages")),
        ("pyenv", wheel("home/.pyenv/versions/3.9.1", "python3.9/site-packages")),
        ("CONDA_PREFIX", wheel("conda", "python3.10/site-packages")),
        ("CONDA_PREFIX", at("conda/lib")),
        ("CONDA_PREFIX", at("conda/targets/x86_64-linux/lib")),
        ("/opt/cuda", at("opt/cuda/lib64")),
        ("/usr/local/cuda*", at("usr/local/cuda-13.0/lib64")),
    ];
    wheels.iter().for_each(|(_, folder)| filled(folder, &["libcublas.so.13"]));
    let path = std::env::join_paths([at("links"), at("home/.pyenv/shims"), bin]).unwrap();
    let places = places(
        &environment(&[("HOME", &at("home")), ("CONDA_PREFIX", &at("conda")), ("PATH", Path::new(&path))]),
        root.path(),
    );
    for (reason, folder) in &wheels {
        let found = places.iter().find(|p| p.folder.canonicalize().ok() == folder.canonicalize().ok());
        assert_eq!(found.map(|p| p.reason.as_str()), Some(*reason), "{}: {places:#?}", folder.display());
    }
    let rank = |folder: &Path| places.iter().position(|p| p.folder == folder);
    assert!(rank(&wheels[3].1) < rank(&wheels[4].1), "pyenv's own choice comes first: {places:#?}");
}

#[test]
fn an_environment_without_nvidia_packages_is_listed_as_looked_into() {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    let packages = folder.path().join("lib/python3.12/site-packages");
    std::fs::create_dir_all(&packages).unwrap();
    filled(&bin, &["python3"]);
    let places = places(&environment(&[("PATH", &bin)]), Path::new("/"));
    let expected = Place { reason: "python3 on PATH".into(), folder: packages.join("nvidia") };
    assert!(places.contains(&expected), "{places:?}");
}

#[test]
fn settings_come_before_conventions_and_no_folder_is_listed_twice() {
    let cuda = Path::new("/opt/some cuda");
    let places = places(
        &environment(&[
            ("LD_LIBRARY_PATH", Path::new("/a::/opt/some cuda/lib64")),
            ("CUDA_HOME", cuda),
            ("CUDA_PATH", cuda),
        ]),
        Path::new("/"),
    );
    let reasons: Vec<&str> = places.iter().take(3).map(|p| p.reason.as_str()).collect();
    assert_eq!(reasons, ["LD_LIBRARY_PATH", "LD_LIBRARY_PATH", "CUDA_HOME"]);
    let folders: std::collections::BTreeSet<_> = places.iter().map(|p| &p.folder).collect();
    assert_eq!(folders.len(), places.len());
}

#[test]
fn threads_of_one_core_are_one_core() {
    let info = "processor : 0\nphysical id : 0\ncore id : 0\n\nprocessor : 1\nphysical id : 0\ncore id : 0\n\n\
                processor : 2\nphysical id : 1\ncore id : 0\n";
    assert_eq!(physical_cores(info), Some(2));
    assert_eq!(physical_cores(""), None);
}
