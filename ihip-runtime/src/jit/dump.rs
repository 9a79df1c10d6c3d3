//! `IHIP_DUMP`: whatever a run plans and compiles, as files that people read.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use ihip_dsl::Plan;

use super::{Architecture, Cubin, JitError, Nvrtc, library};

/// Programs that turn a cubin into SASS, the best one first, each with its arguments before the file.
const DISASSEMBLERS: [(&str, &[&str]); 2] =
    [("nvdisasm", &["--print-code", "--print-line-info"]), ("cuobjdump", &["--dump-sass"])];

/// Files that a run leaves for people: plans, CUDA text, PTX, SASS.
#[derive(Clone, Debug)]
pub struct Dump {
    folder: PathBuf,
    /// Only kernels whose name holds this.
    filter: String,
    plan: bool,
    cuda: bool,
    ptx: bool,
    /// What turns cubins into SASS, where that is asked for.
    sass: Option<Disassembler>,
}

/// A program that turns a cubin into SASS, and its arguments before the file.
#[derive(Clone, Debug)]
struct Disassembler {
    program: PathBuf,
    arguments: &'static [&'static str],
}

impl Dump {
    /// What the environment asks for: `IHIP_DUMP` is a list of `plan`, `cuda`, `ptx` and `sass` with commas between
    /// them, `IHIP_DUMP_FILTER` a part of kernels' names, `IHIP_DUMP_DIR` the folder (`ihip-dump` where it is not set).
    ///
    /// # Errors
    /// [`JitError::DumpWord`] for any other word, [`JitError::NoDisassembler`] where there is none for `sass`.
    pub fn from_environment() -> Result<Option<Self>, JitError> {
        let text = |name| library::variable(name).map(|value| value.to_string_lossy().into_owned());
        let Some(words) = text("IHIP_DUMP") else { return Ok(None) };
        let folder = library::variable("IHIP_DUMP_DIR").map_or_else(|| PathBuf::from("ihip-dump"), PathBuf::from);
        Self::new(&words, text("IHIP_DUMP_FILTER").unwrap_or_default(), folder).map(Some)
    }

    /// A dump of what `words` names into `folder`, of kernels whose name holds `filter`.
    ///
    /// # Errors
    /// [`JitError::DumpWord`] for a word that is none of `plan`, `cuda`, `ptx` and `sass`,
    /// [`JitError::NoDisassembler`] before any work where there is none for `sass`.
    pub fn new(words: &str, filter: String, folder: PathBuf) -> Result<Self, JitError> {
        let mut dump = Self { folder, filter, plan: false, cuda: false, ptx: false, sass: None };
        for word in words.split(',') {
            match word.trim() {
                "plan" => dump.plan = true,
                "cuda" => dump.cuda = true,
                "ptx" => dump.ptx = true,
                "sass" => dump.sass = Some(Disassembler::find()?),
                word => return Err(JitError::DumpWord { word: word.to_owned() }),
            }
        }
        Ok(dump)
    }

    /// Writes the numbers of a plan, for every distinct kind of layer, to `<pipeline>.plan.txt`.
    ///
    /// # Errors
    /// [`JitError::Dump`] where it cannot be written.
    pub fn plan(&self, plan: &Plan) -> Result<(), JitError> {
        if !self.plan {
            return Ok(());
        }
        let mut text = format!("pipeline {}, {} layers\n{:#?}\n", plan.name(), plan.layers(), plan.geometry());
        for (index, kind) in plan.kinds().iter().enumerate() {
            let layers = |kind_of: &dyn Fn(usize) -> usize| {
                let layers = (0..plan.layers()).filter(|&layer| kind_of(layer) == index);
                layers.map(|layer| layer.to_string()).collect::<Vec<_>>().join(" ")
            };
            let prefill = layers(&|layer| plan.prefill_kind(layer));
            let decode = layers(&|layer| plan.decode_kind(layer));
            text.push_str(&format!("\nlayers in prefill: {prefill}\nlayers in decoding: {decode}\n{kind:#?}\n"));
        }
        self.write(&format!("{}.plan.txt", plan.name()), &text)
    }

    /// Writes the text of a kernel.
    ///
    /// # Errors
    /// [`JitError::Dump`] where it cannot be written.
    pub(super) fn text(&self, kernel: &str, text: &str) -> Result<(), JitError> {
        if self.cuda && kernel.contains(&self.filter) {
            self.write(&format!("{kernel}.cu"), text)?;
        }
        Ok(())
    }

    /// Writes what has become of a kernel. PTX is compiled by `nvrtc`, or by the library of [`Nvrtc::find`]: a cubin that
    /// was kept has none.
    ///
    /// # Errors
    /// [`JitError::Dump`] where it cannot be written; those of compiling to PTX and of [`Nvrtc::find`];
    /// [`JitError::Disassembler`].
    pub(super) fn compiled(
        &self,
        nvrtc: Option<&Nvrtc>,
        kernel: &str,
        text: &str,
        architecture: Architecture,
        cubin: &Cubin,
    ) -> Result<(), JitError> {
        if !kernel.contains(&self.filter) {
            return Ok(());
        }
        if self.ptx {
            let ptx = match nvrtc {
                Some(nvrtc) => nvrtc.ptx(kernel, text, architecture)?,
                None => Nvrtc::find()?.ptx(kernel, text, architecture)?,
            };
            self.write(&format!("{kernel}.{architecture}.ptx"), &ptx)?;
        }
        if let Some(disassembler) = &self.sass {
            self.write(&format!("{kernel}.{architecture}.sass"), &disassembler.run(&cubin.image)?)?;
        }
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> Result<(), JitError> {
        let path = self.folder.join(name);
        let written = fs::create_dir_all(&self.folder).and_then(|()| fs::write(&path, text));
        written.map_err(|source| JitError::Dump { path, source })
    }
}

impl Disassembler {
    fn find() -> Result<Self, JitError> {
        let mut looked_in = Vec::new();
        for (name, arguments) in DISASSEMBLERS {
            match library::program(name) {
                Ok(program) => return Ok(Self { program, arguments }),
                Err(folders) => looked_in = folders,
            }
        }
        let looked_in = looked_in.iter().map(|folder| folder.display().to_string()).collect();
        Err(JitError::NoDisassembler { names: DISASSEMBLERS.map(|(name, _)| name), looked_in })
    }

    /// The SASS of a cubin.
    fn run(&self, image: &[u8]) -> Result<String, JitError> {
        let failed = |reason: String| JitError::Disassembler { program: self.program.clone(), reason };
        let io = |error: io::Error| failed(error.to_string());
        let file = tempfile::Builder::new().suffix(".cubin").tempfile().map_err(io)?;
        fs::write(file.path(), image).map_err(io)?;
        let command = Command::new(&self.program).args(self.arguments).arg(file.path()).stdin(Stdio::null()).output();
        let output = command.map_err(io)?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_word_that_is_no_kind_of_file_is_refused_with_those_that_are() {
        let error = Dump::new("cuda,asm", String::new(), PathBuf::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "IHIP_DUMP has the word “asm”: give plan, cuda, ptx, sass, or several with commas between them"
        );
        assert!(Dump::new("plan, ptx", String::new(), PathBuf::new()).is_ok());
        assert!(Dump::new("", String::new(), PathBuf::new()).is_err());
    }

    #[test]
    fn only_kernels_whose_name_holds_the_filter_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let dump = Dump::new("cuda", "scan".to_owned(), folder.path().join("new")).unwrap();
        dump.text("ihip_s0_scan", "// scan").unwrap();
        dump.text("ihip_s0_select", "// select").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("new/ihip_s0_scan.cu")).unwrap(), "// scan");
        assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 1);
    }

    #[test]
    fn a_disassembler_gets_the_cubin_and_what_it_says_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("nvdisasm");
        fs::write(
            &program,
            "#!/bin/sh\n[ \"$(cat \"$3\")\" = cubin ] || { echo bad file >&2; exit 1; }\necho \"$1\"\n",
        )
        .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let disassembler = Disassembler { program: program.clone(), arguments: DISASSEMBLERS[0].1 };
        assert_eq!(disassembler.run(b"cubin").unwrap(), "--print-code\n");
        let error = disassembler.run(b"other").unwrap_err().to_string();
        assert_eq!(error, format!("{} cannot disassemble the cubin: bad file", program.display()));
    }
}
