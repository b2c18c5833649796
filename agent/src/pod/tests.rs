use super::*;

fn pod(name: &str) -> (PathBuf, Pod) {
    let base = std::env::temp_dir().join(format!("bulkhead-pod-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&base);
    fs::create_dir_all(base.join("sys/net/ipv4")).unwrap();
    fs::write(base.join("sys/net/ipv4/ip_forward"), "0\n").unwrap();
    let scratch = Arc::new(Scratch::new(
        crate::disk::Disks::default(),
        base.join("scratch"),
    ));
    (
        base.clone(),
        Pod::new(
            base.join("pod"),
            base.join("sys"),
            base.join("shm"),
            scratch,
        ),
    )
}

fn file(name: &str, content: &[u8], mode: u32) -> File {
    let mut file = File::new();
    (file.name, file.content, file.mode) = (name.to_owned(), content.to_vec(), mode);
    file
}

#[tokio::test]
async fn the_same_request_twice_leaves_the_same() {
    let (base, pod) = pod("twice");
    let mut request = ConfigureRequest::new();
    request.files = vec![
        file("hosts", b"127.0.0.1 localhost\n", 0o600),
        file("resolv.conf", b"", 0),
    ];
    request
        .sysctls
        .insert("net.ipv4.ip_forward".to_owned(), "1".to_owned());
    for _ in 0..2 {
        pod.configure(&request, Deadline::NEVER).await.unwrap();
        assert_eq!(
            fs::read(base.join("pod/hosts")).unwrap(),
            b"127.0.0.1 localhost\n"
        );
        let mode = |name: &str| {
            fs::metadata(base.join("pod").join(name))
                .unwrap()
                .permissions()
                .mode()
                & 0o7777
        };
        assert_eq!((mode("hosts"), mode("resolv.conf")), (0o600, 0o644));
        assert_eq!(
            fs::read_to_string(base.join("sys/net/ipv4/ip_forward"))
                .unwrap()
                .trim(),
            "1"
        );
    }
}

#[tokio::test]
async fn a_bad_request_changes_nothing_and_names_the_field() {
    let (base, pod) = pod("bad");
    let mut request = ConfigureRequest::new();
    request.files = vec![file("hosts", b"x", 0)];
    for bad in ["no.such.sysctl", "../x", "net..x", "", "net.ipv4.", "a b"] {
        let mut request = request.clone();
        request.sysctls.insert(bad.to_owned(), "1".to_owned());
        let error = pod.configure(&request, Deadline::NEVER).await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{bad}: {error}");
        assert!(error.to_string().contains(bad), "{error}");
        assert!(!base.join("pod/hosts").exists());
    }
    request.files.push(file("../up", b"", 0));
    assert!(matches!(
        pod.configure(&request, Deadline::NEVER).await,
        Err(Error::Invalid(_))
    ));
    assert!(!base.join("pod/hosts").exists());
}

#[test]
fn sysctl_names_become_paths() {
    let path = |name| sysctl_path(name).map(|path| path.to_str().unwrap().to_owned());
    assert_eq!(
        path("kernel.shm_rmid_forced").as_deref(),
        Some("kernel/shm_rmid_forced")
    );
    assert_eq!(
        path("net.ipv4.conf.eth0/1.forwarding").as_deref(),
        Some("net/ipv4/conf/eth0.1/forwarding")
    );
    for bad in ["net.//.x", "/", "a./", ".a", "a\0b"] {
        assert_eq!(path(bad), None, "{bad}");
    }
}

#[test]
fn reads_the_geometry_of_ext4() {
    let mut block = [0u8; ext4::LENGTH];
    assert_eq!(Geometry::parse(&block), None);
    block[0x38..0x3a].copy_from_slice(&0xef53u16.to_le_bytes());
    block[0x4..0x8].copy_from_slice(&7u32.to_le_bytes());
    block[0x18] = 2;
    block[0x150] = 1;
    assert_eq!(
        Geometry::parse(&block),
        Some(Geometry {
            block_size: 4096,
            blocks: 7
        })
    );
    block[0x60] = 0x80;
    assert_eq!(Geometry::parse(&block).unwrap().blocks, 7 + (1 << 32));
    block[0x18] = 7;
    assert_eq!(Geometry::parse(&block), None);
    assert_eq!(Geometry::parse(&block[..100]), None);
}
