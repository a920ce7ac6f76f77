// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

@Suite struct AddressTests {
    static let forms: [(String, String)] = [
        ("0.0.0.0", "0.0.0.0"), ("255.255.255.255", "255.255.255.255"), ("10.1.2.3", "10.1.2.3"),
        ("::", "::"), ("::1", "::1"), ("1::", "1::"), ("fe80::1:0:0:1", "fe80::1:0:0:1"),
        ("2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1"), ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.4"), ("64:ff9b::192.0.2.33", "64:ff9b::c000:221"),
        ("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"), ("1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"),
        ("fd7a:115c:a1e0:4708:890a:b0c:d0e:f10", "fd7a:115c:a1e0:4708:890a:b0c:d0e:f10"),
    ]

    @Test(arguments: forms) func addressesReadAndWrite(_ text: String, _ canonical: String) throws {
        let address = try #require(IPAddress(text))
        #expect(address.description == canonical)
        #expect(IPAddress(canonical) == address)
    }

    static let wrong = [
        "", "1", "1.2.3", "1.2.3.4.5", "256.1.1.1", "01.2.3.4", "1.2.3.-4", "+1.2.3.4", " 1.2.3.4", ":",
        ":::",
        "1::2::3", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "12345::", "g::", "fe80::1%eth0", "::1.2.3",
        "1.2.3.4::",
        "1:2:3:4:5:6:7:8::", "::+1", "1::-2",
    ]

    @Test(arguments: wrong) func nonsenseIsNoAddress(_ text: String) {
        #expect(IPAddress(text) == nil)
    }

    @Test func socketAddresses() throws {
        #expect(SocketAddress("1.2.3.4:5")?.description == "1.2.3.4:5")
        #expect(SocketAddress("[::1]:65535")?.description == "[::1]:65535")
        for wrong in ["1.2.3.4", "1.2.3.4:65536", "::1:5", "[1.2.3.4]:5", "[::1]5", ":5", "[]:5", "[", "]:1"]
        {
            #expect(SocketAddress(wrong) == nil, "\(wrong)")
        }
    }

    @Test func prefixesMaskAndContain() throws {
        let ten = try #require(IPPrefix("10.9.8.7/8"))
        #expect(ten.description == "10.0.0.0/8")
        #expect(ten.contains(IPAddress(v4: 0x0aff_ffff)) && !ten.contains(IPAddress(v4: 0x0b00_0000)))
        let six = try #require(IPPrefix("fd7a:115c:a1e0:ffff::1/48"))
        #expect(six.description == "fd7a:115c:a1e0::/48")
        #expect(six.contains(try #require(IPAddress("fd7a:115c:a1e0:1::"))))
        #expect(!six.contains(try #require(IPAddress("fd7a:115c:a1e1::"))))
        let all = try #require(IPPrefix("::/0"))
        #expect(!all.contains(IPAddress(v4: 1)))
        #expect(try #require(IPPrefix("1:2:3:4:5:6:7:8/65")).description == "1:2:3:4::/65")
        for wrong in ["1.2.3.4", "1.2.3.4/33", "::/129", "1.2.3.4/-1", "1.2.3.4/+8", "1.2.3.4/8/8"] {
            #expect(IPPrefix(wrong) == nil, "\(wrong)")
        }
    }

    @Test func kindsOfAddresses() throws {
        let kinds: [(String, KeyPath<IPAddress, Bool>)] = [
            ("127.8.8.8", \.isLoopback), ("::1", \.isLoopback), ("172.31.0.1", \.isPrivate),
            ("10.0.0.1", \.isPrivate),
            ("192.168.1.1", \.isPrivate), ("fd00::1", \.isPrivate), ("fe80::1", \.isLinkLocal),
            ("169.254.1.1", \.isLinkLocal), ("224.0.0.1", \.isMulticast), ("ff02::1", \.isMulticast),
            ("0.0.0.0", \.isUnspecified), ("::", \.isUnspecified),
        ]
        for (text, kind) in kinds { #expect(try #require(IPAddress(text))[keyPath: kind], "\(text)") }
        let open = try #require(IPAddress("172.32.0.1"))
        #expect(!open.isPrivate && !open.isLoopback && !open.isLinkLocal && !open.isMulticast)
        #expect(try #require(IPAddress("::ffff:10.0.0.1")).unmapped == IPAddress(v4: 0x0a00_0001))
    }

    @Test func timeSaturates() {
        #expect(Instant.never + .seconds(1) == .never)
        #expect(Instant(nanoseconds: 5).since(Instant(nanoseconds: 9)) == .zero)
        #expect(Interval.seconds(.max / 1_000_000_000) * 3 == Interval(nanoseconds: .max))
    }
}
