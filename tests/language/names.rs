//! Nothing that a person wrote reaches a kernel but a checked name.

use ihip_dsl::emit::{Activation, Program};
use ihip_dsl::{KvType, Plan, Rule, parse_toml};
use ihip_model::shapes::KNOWN_SHAPES;

/// A file under this name, with this doc comment.
fn file(name: &str, doc: &str) -> String {
    let [name, doc] = [name, doc].map(|text| toml::Value::String(text.to_owned()).to_string());
    format!(
        "name = {name}\ndoc = {doc}\nsink = 64\nwindow = 512\nattend.keep = 256\n\
         stage = [{{ chunk = 64 }}, {{ keep = 1024, chunk = 16, representative = \"mean\" }}]\n\
         rope = {{ scan = \"relative\", attend = \"streaming\" }}\n"
    )
}

#[test]
fn a_name_that_is_no_plain_identifier_is_refused() {
    let hostile = [
        "",
        " ",
        "_",
        "_x",
        "1a",
        "a b",
        "a-b",
        "a.b",
        "a::b",
        "a\nb",
        "a\r",
        "a\\",
        "a\\\n",
        "a\"",
        "a'",
        "a\0b",
        "*/",
        "a*/int x;",
        "x(){}",
        "a#b",
        "#include",
        "??/",
        "%s",
        "a$b",
        "größe",
        "ａ",
        "\u{212a}",
        "a\u{200b}",
        "a\u{301}",
        "\u{202e}a",
        "../../etc",
        &"a".repeat(65),
    ];
    for name in hostile {
        let errors = parse_toml(&file(name, "")).expect_err(name);
        assert!(errors.iter().any(|error| matches!(&error.rule, Rule::InvalidName { .. })), "{name:?}: {errors:?}");
    }
}

#[test]
fn a_kernel_has_nothing_of_a_text_but_the_name_in_small_letters() {
    let doc = "*/ int hostile_doc; /* \\\n#error hostile_doc\n??/\n\"hostile_doc";
    for name in ["int", "asm", "Main", "X__9", "NULL", "defined", &"Zz9_".repeat(16)] {
        let pipeline = parse_toml(&file(name, doc)).unwrap();
        let model = &KNOWN_SHAPES[0];
        let plan = Plan::new(&pipeline, model.geometry(KvType::Bf16), model.frequencies(), model.layers).unwrap();
        let plain = parse_toml(&file("Plain", "")).unwrap();
        let plain = Plan::new(&plain, model.geometry(KvType::Bf16), model.frequencies(), model.layers).unwrap();
        let kernels = |plan| Program::new(plan, Activation::F32).unwrap().kernels();
        let (named, plain) = (kernels(&plan), kernels(&plain));
        assert_eq!(named.len(), plain.len());
        for (kernel, plain) in named.iter().zip(&plain) {
            assert!(
                kernel.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'),
                "{}",
                kernel.name
            );
            let small = name.to_lowercase();
            assert_eq!(kernel.name, plain.name.replacen("plain", &small, 1));
            assert_eq!(kernel.text, plain.text.replace("Plain", name).replace(&plain.name, &kernel.name));
        }
    }
}
