//! Accounts of an image: root without a password, `user` without or with one, and the groups that devices belong to.

use super::tree::Tree;
use anyhow::{Context, Result};

/// The account for a person: name, uid and gid.
const USER: (&str, u32) = ("user", 1000);

/// Its groups, and the ids of those that a package not in every image would make.
const GROUPS: &[(&str, u32)] = &[("video", 44), ("audio", 29), ("input", 995), ("render", 992)];

/// Adds the accounts. `password` is the user's as crypt(5) hashes it.
pub fn set_up(tree: &mut Tree, password: Option<&str>) -> Result<()> {
    let read = |tree: &Tree, path: &str, fallback: &str| -> Result<String> {
        let text = match tree.read(path)? {
            Some(text) => Some(text),
            None => tree.read(fallback)?,
        };
        String::from_utf8(text.unwrap_or_default()).with_context(|| format!("{path} is not UTF-8"))
    };
    let passwd = read(tree, "etc/passwd", "usr/share/base-passwd/passwd.master")?;
    let group = read(tree, "etc/group", "usr/share/base-passwd/group.master")?;
    let shadow = read(tree, "etc/shadow", "none")?;
    let (name, id) = USER;
    tree.file("etc/passwd", 0o644, edit_passwd(&passwd).into_bytes());
    tree.file("etc/group", 0o644, edit_group(&group).into_bytes());
    tree.file("etc/shadow", 0o640, edit_shadow(&shadow, password.unwrap_or_default()).into_bytes());
    tree.set_owner("etc/shadow", 0, 42);
    tree.file("etc/hostname", 0o644, b"ursa\n".to_vec());
    tree.file("etc/hosts", 0o644, b"127.0.0.1\tlocalhost ursa\n::1\tlocalhost\n".to_vec());
    let home = format!("home/{name}");
    tree.folder(&home, 0o755, id, id);
    for file in [".bashrc", ".profile", ".bash_logout"] {
        if let Some(text) = tree.read(format!("etc/skel/{file}"))? {
            let path = format!("{home}/{file}");
            tree.file(&path, 0o644, text);
            tree.set_owner(&path, id, id);
        }
    }
    Ok(())
}

fn edit_passwd(text: &str) -> String {
    let (name, id) = USER;
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with(&format!("{name}:")))
        .map(|line| match line.strip_prefix("root:") {
            Some(rest) => format!("root:x:{}", rest.split_once(':').map_or("", |(_, rest)| rest)),
            None => line.to_owned(),
        })
        .collect();
    if !lines.iter().any(|line| line.starts_with("root:")) {
        lines.insert(0, "root:x:0:0:root:/root:/bin/bash".into());
    }
    lines.push(format!("{name}:x:{id}:{id}:{name}:/home/{name}:/bin/bash"));
    lines.join("\n") + "\n"
}

fn edit_group(text: &str) -> String {
    let (user, id) = USER;
    let mut lines: Vec<String> =
        text.lines().filter(|line| !line.starts_with(&format!("{user}:"))).map(str::to_owned).collect();
    for (name, gid) in GROUPS {
        match lines.iter_mut().find(|line| line.starts_with(&format!("{name}:"))) {
            Some(line) => {
                let members = line.rsplit(':').next().unwrap_or("");
                if !members.split(',').any(|member| member == user) {
                    line.push_str(if members.is_empty() { user } else { ",user" });
                }
            }
            None => lines.push(format!("{name}:x:{gid}:{user}")),
        }
    }
    lines.push(format!("{user}:x:{id}:"));
    lines.join("\n") + "\n"
}

/// An empty password field lets anyone in, shadow(5).
fn edit_shadow(text: &str, user_password: &str) -> String {
    let accounts = [("root", ""), (USER.0, user_password)];
    let mut lines: Vec<String> =
        accounts.iter().map(|(name, password)| format!("{name}:{password}:20000:0:99999:7:::")).collect();
    let other = |line: &&str| !accounts.iter().any(|(name, _)| line.starts_with(&format!("{name}:")));
    lines.extend(text.lines().filter(other).map(str::to_owned));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_gain_the_user_once() {
        let once = edit_group("root:*:0:\nvideo:x:44:\naudio:x:29:other\n");
        assert!(once.contains("video:x:44:user\n") && once.contains("audio:x:29:other,user\n"));
        assert!(once.contains("render:x:992:user\n") && once.ends_with("user:x:1000:\n"));
        assert_eq!(edit_group(&once), once);
    }

    #[test]
    fn root_and_user_need_no_password() {
        let shadow = edit_shadow("root:*:20000:0:99999:7:::\ndaemon:*:20000:0:99999:7:::\n", "");
        assert!(shadow.starts_with("root::") && shadow.contains("\nuser::") && shadow.contains("\ndaemon:*:"));
        assert_eq!(shadow.matches("root:").count(), 1);
        assert!(edit_shadow("", "$6$x$y").contains("\nuser:$6$x$y:"));
        assert!(edit_passwd("root:*:0:0:root:/root:/bin/bash\n").starts_with("root:x:0:0:"));
    }
}
