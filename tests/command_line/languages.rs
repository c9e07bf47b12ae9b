//! What is said in the reader's language, and what is the same in every one.

use std::fs;

use support::cli::Place;

use super::um;

#[test]
fn explain_speaks_the_language_of_who_asks() {
    let place = Place::new();
    fs::write(place.at("b/file"), "of b\n").unwrap();
    um(&place, "--lower a:b --upper up mnt").ok();
    fs::remove_file(place.at("mnt/file")).unwrap();
    for (line, parts) in [
        (
            "explain --lang zh mnt/file",
            ["在合并视图中不存在", "被可写层里的删除标记遮住", "在可写层里新建，取代删除标记"],
        ),
        ("explain --lang zh_CN mnt/file", ["在合并视图中不存在", "删除标记（设备 0:0）", "遮住下层内容"]),
        (
            "explain --lang en mnt/file",
            ["not in the merged view", "a whiteout in the upper hides it", "in place of the whiteout"],
        ),
        // Nothing need be mounted.
        ("explain --lang zh --lower a:b /file", ["文件，5 B", "第 2 层（b）在最上面", "不允许：没有可写层"]),
    ] {
        let said = um(&place, line).out;
        for part in parts {
            assert!(said.contains(part), "{line}: {part} is not in {said}");
        }
    }
    // By the environment; a language that there is not is English.
    let asks = |environment: &str, arguments: &str| {
        place
            .sh(&format!(
                "unset LC_ALL LC_MESSAGES LANG; {environment} ./unionmount explain {arguments} mnt/file"
            ))
            .out
    };
    assert!(asks("LANG=zh_CN.UTF-8", "").contains("遮住下层内容"));
    assert!(asks("LANG=en_US.UTF-8 LC_ALL=zh_CN.UTF-8", "").contains("遮住下层内容"));
    assert!(asks("LANG=de_DE.UTF-8", "").contains("hides what is below"));
    assert!(asks("LANG=zh_CN.UTF-8", "--lang en").contains("hides what is below"));
    // Programs get the same in every language.
    let json = asks("LANG=zh_CN.UTF-8", "--json");
    assert_eq!(json, asks("LANG=C", "--json"));
    assert!(json.contains("a whiteout in the upper hides it"), "{json}");
    um(&place, "explain --lang xx mnt/file").refused(2, &["en, zh"]);
    place.umount("mnt");
    place.wait_for_no_daemon();
}

#[test]
fn layers_speaks_it_too() {
    let place = Place::new();
    fs::write(place.at("a/file"), "of a\n").unwrap();
    fs::write(place.at("b/file"), "of b, longer\n").unwrap();
    for (line, parts) in [
        ("layers --lang zh_CN --lower a:b", ["浪费的空间", "被另一个版本替换", "产生于第 2 层：b"]),
        ("layers --lang zh --lower a:b --waste", ["由哪一层", "被替换", "有效比例 27.8 %。"]),
        ("layers --lang zh --lower a:b --tree", ["所在的层", "第 1 层替换第 3 层", "有效比例"]),
        ("layers --lang en --lower a:b", ["Waste", "replaced by another version", "made in layer 2: b"]),
    ] {
        let said = um(&place, line).ok().out;
        for part in parts {
            assert!(said.contains(part), "{line}: {part} is not in {said}");
        }
    }
}

/// What this program calls a layer by itself is called so in the reader's language; for programs in English.
#[test]
fn layers_of_containers_are_called_in_it() {
    let place = Place::new();
    fs::write(place.at("a/file"), "of a\n").unwrap();
    um(&place, "import -c 'CMD [\"sh\"]' a demo:1").ok();
    um(&place, "create --name web demo:1").ok();
    for line in ["layers --lang zh web", "explain --lang zh web /file"] {
        let said = um(&place, line).ok().out;
        assert!(said.contains("容器 web"), "{line}: {said}");
    }
    let json = um(&place, "layers --lang zh --json web").ok().out;
    assert!(json.contains("container web") && !json.contains("容器"), "{json}");
}

#[test]
fn status_speaks_it_too() {
    let place = Place::new();
    fs::write(place.at("b/file"), "of b\n").unwrap();
    um(&place, "--lower a:b --upper up mnt").ok();
    fs::remove_file(place.at("mnt/file")).unwrap();
    for (line, parts) in [
        ("status --lang zh mnt", ["已挂载", "删除标记", "新增 1 个删除标记", "可写层"]),
        ("status --lang zh_CN", ["挂载点", "2 层 + 可写层", "秒", "请求"]),
        ("status --lang en mnt", ["mounted", "WHITEOUTS", "1 whiteout made", "upper"]),
    ] {
        let said = um(&place, line).out;
        for part in parts {
            assert!(said.contains(part), "{line}: {part} is not in {said}");
        }
    }
    let json = |language: &str| {
        let said = um(&place, &format!("status --json --lang {language} --count 0 mnt")).ok().out;
        let told: serde_json::Value = serde_json::from_str(&said).unwrap();
        (told["layers"].clone(), told["counters"].clone())
    };
    assert_eq!(json("zh"), json("en"));
    place.umount("mnt");
    place.wait_for_no_daemon();
}

#[test]
fn pictures_and_pages_go_to_stdout_by_a_dash() {
    let place = Place::new();
    fs::write(place.at("a/file"), "of a\n").unwrap();
    assert!(um(&place, "layers --lower a --svg -").ok().out.starts_with("<svg"));
    assert!(um(&place, "layers --lower a --html -").ok().out.to_lowercase().starts_with("<!doctype html"));
    assert!(!place.at("-").exists());
}
