//! Exported kernels: what the manifest says is so, and whoever follows it computes what the reference does.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use ihip_dsl::emit::{Activation, Extent, Kernel, Program};
use ihip_dsl::{Geometry, KvType, Pipeline, Plan};
use ihip_model::export::{self, Export, ExportError, File, Manifest, Passed, Vector, sha256};
use ihip_runtime::jit::{Architecture, Compiler};
use ihip_tests::support::attention::decode;
use ihip_tests::support::host::{HostValue, host};
use ihip_tests::support::nvrtc::nvrtc;
use tempfile::TempDir;

/// A pipeline whose layers differ, with summaries that appending keeps.
const PIPELINE: &str = "
pub Small {
    query_block 32; sink 16; window 64;
    stage { chunk 32, query_stride 4, representative mean }
    stage { keep 192, chunk 8, query_stride 1 }
    attend { keep 96 }
    rope { scan relative, attend streaming }
    layers 0 { attend { keep 64 } rope { scan chunk_indexed } }
}
";

const GEOMETRY: Geometry = Geometry {
    query_heads: 4,
    kv_heads: 2,
    head_dim: 32,
    kv_type: KvType::Bf16,
    page: 16,
    query_scale: 0.176_776_7,
    trained: 8192,
};

fn frequencies() -> Vec<f64> {
    (0..16).map(|pair| 10_000_f64.powf(-f64::from(pair) / 16.0)).collect()
}

fn pipeline() -> Pipeline {
    ihip_dsl::parse_str(PIPELINE).unwrap_or_else(|errors| panic!("{errors}")).remove(0)
}

/// Two layers of the pipeline, or of dense attention.
fn program(pipeline: Option<&Pipeline>) -> Program {
    let plan = match pipeline {
        Some(pipeline) => Plan::new(pipeline, GEOMETRY, frequencies(), 2).expect("two layers"),
        None => Plan::dense(GEOMETRY, frequencies(), 2),
    };
    Program::new(&plan, Activation::F32).expect("a usual head")
}

fn export(program: &Program, pipeline: Option<&Pipeline>, folder: &Path) -> Result<Manifest, ExportError> {
    let extent = Extent { rows: 64, tokens: 2048 };
    let compilers = [Compiler::new(nvrtc().clone(), Architecture::SM_90, None)];
    Export { program, pipeline, model: "a small one", extent, vectors: true }.write(folder, &compilers, &|_| ())
}

/// An export of the pipeline, written once.
fn exported() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let pipeline = pipeline();
        export(&program(Some(&pipeline)), Some(&pipeline), folder.path()).unwrap_or_else(|error| panic!("{error}"));
        folder
    });
    folder.path()
}

fn manifest(folder: &Path) -> Manifest {
    let text = fs::read_to_string(folder.join(export::MANIFEST)).expect("there is a manifest");
    serde_json::from_str(&text).expect("it is one")
}

fn content(folder: &Path, File { file, sha256: stated }: &File) -> Vec<u8> {
    let bytes = fs::read(folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert_eq!(sha256(&bytes), *stated, "{file}");
    bytes
}

#[test]
fn every_file_has_the_hash_of_the_manifest_and_no_other_is_there() {
    let folder = exported();
    let manifest = manifest(folder);
    assert_eq!(manifest.kernels.len(), program(Some(&pipeline())).kernels().len());
    for kernel in &manifest.kernels {
        let text = String::from_utf8(content(folder, &kernel.text)).expect("a text");
        assert!(text.contains(&format!(") {}(", kernel.entry)), "{}", kernel.entry);
        let cubin = &kernel.cubins["sm_90"];
        let image = content(folder, &File { file: cubin.file.clone(), sha256: cubin.sha256.clone() });
        assert!(image.starts_with(b"\x7fELF"), "{}", kernel.entry);
        assert!(cubin.registers > 0, "{}", kernel.entry);
        for argument in &kernel.arguments {
            let numbers = ["int", "float"].contains(&argument.kind.as_str());
            assert_eq!(argument.buffers.is_empty(), numbers, "{}: {}", kernel.entry, argument.name);
            for buffer in &argument.buffers {
                let element = &manifest.buffers[buffer].element;
                assert!(argument.kind.contains(element.as_str()), "{}: {buffer} for {}", kernel.entry, argument.kind);
            }
        }
    }
    assert_eq!(manifest.launches.iter().map(|sequence| sequence.layers.len()).sum::<usize>(), 2);
    assert_eq!(manifest.tests.len(), 2);
}

#[test]
fn a_folder_that_holds_something_is_not_written() {
    let pipeline = pipeline();
    let again = export(&program(Some(&pipeline)), Some(&pipeline), exported());
    assert!(matches!(again, Err(ExportError::NotEmpty { .. })), "{again:?}");
}

/// Runs the test vectors of a folder where tests run kernels, as any program that reads the manifest would.
fn run_vectors(folder: &Path, kernels: &[Kernel]) {
    let kernels: BTreeMap<&str, &Kernel> = kernels.iter().map(|kernel| (kernel.name.as_str(), kernel)).collect();
    for test in &manifest(folder).tests {
        let vector: Vector = serde_json::from_slice(&content(folder, test)).expect("a test vector");
        let mut host = host();
        let mut buffers = BTreeMap::new();
        for (name, memory) in &vector.buffers {
            let handle = host.allocate(name, memory.bytes);
            if memory.zeroed {
                host.write(handle, 0, &vec![0; memory.bytes]);
            }
            buffers.insert(name.clone(), handle);
        }
        for (name, file) in &vector.content {
            host.write(buffers[name], 0, &content(folder, file));
        }
        for step in &vector.steps {
            for (name, file) in &step.content {
                host.write(buffers[name], 0, &content(folder, file));
            }
            for launch in &step.launches {
                let values: Vec<HostValue> = launch
                    .arguments
                    .iter()
                    .map(|argument| match argument {
                        Passed::Buffer(name) => HostValue::Buffer(buffers[name], 0),
                        Passed::Number(number) => HostValue::I32(*number),
                    })
                    .collect();
                host.launch(kernels[launch.kernel.as_str()], launch.grid, &values);
            }
            let place = format!("layer {}, {}", vector.layer, step.name);
            if let Some(lists) = &step.lists {
                let counts = content(folder, &lists.expected_counts);
                assert_eq!(host.read(buffers[&lists.counts], 0, counts.len()), counts, "{place}");
                let blocks = content(folder, &lists.expected_blocks);
                let got = host.read(buffers[&lists.blocks], 0, blocks.len());
                let rows =
                    counts.as_chunks().0.iter().zip(blocks.chunks(4 * lists.width)).zip(got.chunks(4 * lists.width));
                for ((&count, expected), got) in rows {
                    let bytes = 4 * i32::from_le_bytes(count) as usize;
                    assert_eq!(got[..bytes], expected[..bytes], "{place}");
                }
            }
            if let Some(output) = &step.output {
                let element = ihip_dsl::emit::Element::F32;
                let bytes = content(folder, &output.content);
                let expected = decode(element, &bytes);
                let got = decode(element, &host.read(buffers[&output.buffer], 0, bytes.len()));
                let near = expected.iter().zip(&got).all(|(a, b)| (a - b).abs() <= output.tolerance);
                assert!(near, "{place}: outputs differ by more than {}", output.tolerance);
            }
        }
        let names: Vec<&str> = vector.steps.iter().map(|step| step.name.as_str()).collect();
        assert!(names.ends_with(&["prefill", "decode"]), "{names:?}");
    }
}

#[test]
fn launches_and_inputs_of_the_manifest_give_what_the_reference_computed() {
    run_vectors(exported(), &program(Some(&pipeline())).kernels());
}

#[test]
fn dense_attention_is_exported_like_any_pipeline() {
    let folder = tempfile::tempdir().unwrap();
    let program = program(None);
    export(&program, None, folder.path()).unwrap_or_else(|error| panic!("{error}"));
    run_vectors(folder.path(), &program.kernels());
}

/// The program of the documentation that loads such a folder.
fn load(folder: &Path, arguments: &[&str]) -> Output {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/loader/load_kernels.py");
    Command::new("python3").arg(program).arg(folder).args(arguments).output().expect("python3 is there")
}

#[test]
fn the_documented_program_reads_the_folder_and_says_where_a_gpu_is_needed() {
    let checked = load(exported(), &["--check"]);
    let said = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stderr));
    assert!(said.contains("Small for a small one: ") && said.ends_with("hashes and arguments are right\n"), "{said}");

    let run = load(exported(), &[]);
    let said = String::from_utf8(run.stderr).unwrap();
    match run.status.code() {
        Some(0) => assert!(String::from_utf8(run.stdout).unwrap().ends_with("all is equal\n")),
        Some(3) => assert!(said.starts_with("error: from here on a GPU and its driver are needed: "), "{said}"),
        other => panic!("{other:?}: {said}"),
    }
}

#[test]
fn the_documented_program_refuses_a_damaged_file() {
    let folder = tempfile::tempdir().unwrap();
    let program = program(None);
    let manifest = export(&program, None, folder.path()).unwrap_or_else(|error| panic!("{error}"));
    let cubin = &manifest.kernels[0].cubins["sm_90"].file;
    let mut bytes = fs::read(folder.path().join(cubin)).unwrap();
    bytes[100] ^= 1;
    fs::write(folder.path().join(cubin), bytes).unwrap();
    let refused = load(folder.path(), &["--check"]);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(said, format!("error: {cubin}: its SHA-256 is not the one in the manifest\n"));
}
