//! A CUDA driver, a cuBLAS and an NCCL for a whole program, on the CPU.

use crate::build;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const FILES: [(&str, &str); 4] = [
    ("stand_in.cpp", include_str!("../cpp/stand_in/stand_in.cpp")),
    ("cublas.h", include_str!("../cpp/stand_in/cublas.h")),
    ("nccl.h", include_str!("../cpp/stand_in/nccl.h")),
    ("state.h", include_str!("../cpp/stand_in/state.h")),
];

/// A folder in which the system loader finds a driver, a cuBLAS and an NCCL, and the kernels that they run.
pub struct StandIn {
    folder: TempDir,
    kernels: String,
}

impl StandIn {
    /// The stand-in with the kernels of `sources`, names and texts.
    ///
    /// # Panics
    /// No C++ compiler, or it refuses a source.
    pub fn new<N: AsRef<str>, T: AsRef<str>>(sources: &[(N, T)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let object = build::beside(&FILES);
        for name in ["libcuda.so", "libcublas.so", "libnccl.so.2"] {
            std::os::unix::fs::symlink(&object, folder.path().join(name)).unwrap();
        }
        let sources: Vec<(String, String)> =
            sources.iter().map(|(n, t)| (n.as_ref().to_owned(), t.as_ref().to_owned())).collect();
        let names = sources.iter().map(|s| s.0.as_str()).filter(|name| name.ends_with(".cu"));
        let mut objects = vec![build::runtime_file()];
        objects.extend(names.map(|name| build::kernels_file(&sources, name, false)));
        let objects: Vec<_> = objects.iter().map(|path| path.to_str().unwrap()).collect();
        Self { folder, kernels: objects.join(":") }
    }

    /// Where the libraries lie.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Has the system loader of `command` look into the folders `first`, then into that of the stand-in.
    pub fn serve(&self, first: &[PathBuf], command: &mut Command) {
        let mut folders = [first, &[self.folder.path().to_owned()]].concat();
        folders.extend(std::env::var_os("LD_LIBRARY_PATH").iter().flat_map(std::env::split_paths));
        command.env("LD_LIBRARY_PATH", std::env::join_paths(folders).unwrap());
        command.env("STAND_IN_KERNELS", &self.kernels);
    }
}
