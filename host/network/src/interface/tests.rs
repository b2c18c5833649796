use super::{Contents, Interface, of_pod};
use bulkhead_netlink::{Address, Link, Neighbour, Route};
use std::net::IpAddr;

fn link(index: u32, name: &str, kind: &str) -> Link {
    Link {
        index,
        name: name.into(),
        address: vec![2, 0, 0, 0, 0, u8::try_from(index).unwrap()],
        mtu: 1400,
        flags: 1,
        hardware: 1,
        kind: kind.into(),
        ..Default::default()
    }
}

fn address(index: u32, address: impl Into<IpAddr>) -> Address {
    Address {
        index,
        address: address.into(),
        peer: None,
        prefix: 24,
        scope: 0,
        flags: 0,
        broadcast: None,
    }
}

fn route(index: u32, destination: impl Into<IpAddr>, gateway: Option<IpAddr>) -> Route {
    Route {
        family: 2,
        destination: Some(destination.into()),
        prefix: 24,
        from: None,
        tos: 0,
        index,
        gateway,
        source: None,
        table: 254,
        protocol: 3,
        scope: 0,
        kind: 1,
        flags: 0,
        priority: None,
        preference: None,
        metrics: [(2, 1300)].into(),
        multipath: false,
    }
}

fn contents() -> Contents {
    let mut loopback = link(1, "lo", "");
    loopback.flags |= 8;
    let mut fallback = link(9, "sit0", "sit");
    (fallback.flags, fallback.hardware) = (0, 776);
    Contents {
        links: vec![
            loopback,
            fallback,
            link(2, "net1", "macvlan"),
            link(3, "eth0", "veth"),
        ],
        addresses: vec![
            address(1, [127, 0, 0, 1]),
            address(3, [10, 0, 0, 7]),
            address(3, [0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 3]),
            address(2, [10, 9, 0, 7]),
        ],
        routes: vec![
            route(3, [0, 0, 0, 0], Some([10, 0, 0, 1].into())),
            route(3, [10, 0, 0, 0], None),
            Route {
                table: 255,
                ..route(3, [10, 0, 0, 7], None)
            },
            Route {
                kind: 6,
                ..route(0, [10, 66, 0, 0], None)
            },
        ],
        neighbours: vec![
            Neighbour {
                index: 3,
                state: 0x80,
                flags: 0,
                address: [10, 0, 0, 1].into(),
                hardware: vec![1; 6],
            },
            Neighbour {
                index: 3,
                state: 2,
                flags: 0,
                address: [10, 0, 0, 2].into(),
                hardware: vec![1; 6],
            },
        ],
        without_ipv6: vec!["net1".into()],
    }
}

#[test]
fn the_first_interface_comes_first_and_everything_is_word_for_word() {
    let all = of_pod(&contents(), "eth0").unwrap();
    let names: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["eth0", "net1"]);
    let Interface {
        addresses,
        routes,
        neighbours,
        ..
    } = &all[0];
    assert_eq!(
        addresses.len(),
        1,
        "without the link-local one of the hardware address"
    );
    let given = contents().routes;
    assert_eq!(
        *routes,
        [given[1].clone(), given[0].clone(), given[3].clone()]
    );
    assert_eq!(neighbours.len(), 1, "permanent ones");
    assert!(all[0].ipv6 && !all[1].ipv6);
}

#[test]
fn what_a_vm_cannot_have_is_named() {
    let refused = |change: fn(&mut Contents)| {
        let mut contents = contents();
        change(&mut contents);
        of_pod(&contents, "eth0").unwrap_err()
    };
    assert!(refused(|all| all.links[3].flags = 0).contains("eth0"));
    assert!(refused(|all| all.links[2].hardware = 65534).contains("net1 is not Ethernet"));
    assert!(refused(|all| all.routes[0].multipath = true).contains("several next hops"));
    let many = refused(|all| {
        all.addresses = (0..65).map(|n| address(3, [10, 0, 1, n])).collect();
    });
    assert!(many.contains("65 addresses"), "{many}");
}
