//! Users and groups (`passwd(5)`, `group(5)`).

use alloc::string::String;
use alloc::vec::Vec;

/// Whom a command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Name, if it has one.
    pub name: Option<String>,
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// Finds `USER[:GROUP]`, each a name or a number, in the texts of `/etc/passwd` and `/etc/group`. A number need not
/// have an entry.
pub fn find(wanted: &str, passwd: &str, group: &str) -> Option<Account> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let number = user.parse::<u32>().ok();
    let entries = || passwd.lines().filter_map(parse);
    // A name that looks like a number is a number, as in Docker, unless there is such a name.
    let found = entries()
        .find(|entry| entry.name.as_deref() == Some(user))
        .or_else(|| entries().find(|entry| Some(entry.uid) == number));
    let mut account = match (found, number) {
        (Some(account), _) => account,
        (None, Some(uid)) => Account {
            name: None,
            uid,
            gid: 0,
            groups: Vec::new(),
            home: String::from("/"),
            shell: String::from("/bin/sh"),
        },
        (None, None) => return None,
    };
    match wanted_group {
        Some(wanted) => {
            let by_name = group.lines().filter_map(group_entry).find(|(name, ..)| *name == wanted);
            account.gid = by_name.map(|(_, gid, _)| gid).or_else(|| wanted.parse().ok())?;
        }
        None => {
            let is_member = |members: &str| {
                account.name.as_deref().is_some_and(|name| members.split(',').any(|one| one == name))
            };
            let groups = group.lines().filter_map(group_entry).filter(|(.., members)| is_member(members));
            account.groups = groups.map(|(_, gid, _)| gid).collect();
        }
    }
    Some(account)
}

fn parse(line: &str) -> Option<Account> {
    // Who wrote the file by hand may have left out the last ones.
    let mut fields = line.trim_end().split(':').chain(core::iter::repeat(""));
    let mut next = || fields.next().unwrap_or_default();
    let (name, _, uid, gid, _, home, shell) = (next(), next(), next(), next(), next(), next(), next());
    let or = |text: &str, default: &str| String::from(if text.is_empty() { default } else { text });
    Some(Account {
        name: Some(String::from(name)),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        groups: Vec::new(),
        home: or(home, "/"),
        shell: or(shell, "/bin/sh"),
    })
}

fn group_entry(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?.trim_end());
    Some((name, gid.parse().ok()?, fields.next().unwrap_or_default().trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nweb:x:33:34::/srv:\n7:x:1007:8::/:/bin/false\napp:x:10:5::/app\nfew:x:11:6\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlog:x:4:root,web\nodd:x:x:web\nwheel:x:10:web\n";

    #[test]
    fn finds_names_and_numbers() {
        let web = find("web", PASSWD, GROUP).unwrap();
        assert_eq!((web.uid, web.gid, &web.groups[..]), (33, 34, &[4, 10][..]));
        assert_eq!((web.home.as_str(), web.shell.as_str()), ("/srv", "/bin/sh"));
        assert_eq!(find("33", PASSWD, GROUP), Some(web.clone()));
        assert_eq!(find("web:log", PASSWD, GROUP), Some(Account { gid: 4, groups: vec![], ..web.clone() }));
        assert_eq!(find("web:55", PASSWD, GROUP).map(|account| account.gid), Some(55));
        assert_eq!(find("7", PASSWD, GROUP).map(|account| account.uid), Some(1007), "a name comes first");
        let app = find("app", PASSWD, GROUP).unwrap();
        assert_eq!((app.uid, app.gid, &app.home[..], &app.shell[..]), (10, 5, "/app", "/bin/sh"));
        assert_eq!(find("few:few", PASSWD, "few:x:12\n").unwrap().gid, 12);
        let nobody = find("4711:12", "", "").unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.name), (4711, 12, None));
        for wrong in ["", "wob", "web:", "web:nobody", "-1", "4294967296"] {
            assert_eq!(find(wrong, PASSWD, GROUP), None, "{wrong}");
        }
    }
}
