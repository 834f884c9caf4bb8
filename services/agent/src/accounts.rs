//! Reads `/etc/passwd` and `/etc/group`, passwd(5) and group(5). A static program cannot use the C library's lookups,
//! which load shared modules.

use std::fs;

/// A user as `/etc/passwd` tells.
#[derive(Debug, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// First group.
    pub gid: u32,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
    /// All groups, the first one included.
    pub groups: Vec<u32>,
}

impl User {
    /// Looks a user up by name. `root` is known even where the files are missing.
    pub fn find(name: &str) -> Option<User> {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let group = fs::read_to_string("/etc/group").unwrap_or_default();
        find_in(name, &passwd, &group).or_else(|| {
            (name == "root").then(|| User {
                name: "root".into(),
                uid: 0,
                gid: 0,
                home: "/root".into(),
                shell: "/bin/sh".into(),
                groups: vec![0],
            })
        })
    }
}

fn find_in(name: &str, passwd: &str, group: &str) -> Option<User> {
    let mut user = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let (_password, uid, gid) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let (_gecos, home, shell) = (fields.next()?, fields.next()?, fields.next().unwrap_or(""));
        let shell = if shell.is_empty() { "/bin/sh" } else { shell };
        found.then(|| User { name: name.into(), uid, gid, home: home.into(), shell: shell.into(), groups: vec![gid] })
    })?;
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let &[_, _, gid, members] = fields.as_slice() else { continue };
        if let Ok(gid) = gid.parse()
            && members.split(',').any(|member| member == name)
            && !user.groups.contains(&gid)
        {
            user.groups.push(gid);
        }
    }
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken line\nuser:x:1000:1000::/home/user:\n";
    const GROUP: &str = "root:x:0:\nvideo:x:44:user\ninput:x:995:other,user\naudio:x:29:superuser\nuser:x:1000:user\n";

    #[test]
    fn user_has_the_groups_that_list_it_and_no_others() {
        let user = find_in("user", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (1000, 1000, "/home/user"));
        assert_eq!(user.shell, "/bin/sh");
        assert_eq!(user.groups, [1000, 44, 995]);
    }

    #[test]
    fn unknown_user_is_not_found() {
        assert_eq!(find_in("use", PASSWD, GROUP), None);
    }
}
