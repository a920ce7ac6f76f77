// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

private struct Table: Decodable {
    struct Address: Decodable {
        var ip: String?
        var port: UInt16?
        var latency_ns: UInt64?

        var measured: MeasuredAddress? {
            guard let ip, !ip.isEmpty, let address = IPAddress(ip) else { return nil }
            return MeasuredAddress(
                address: SocketAddress(address, port: port ?? 0),
                latency: Interval(nanoseconds: latency_ns ?? 0))
        }
    }
    struct Case: Decodable {
        var a: Address?
        var b: Address?
        var a_is_better: Bool
    }
    var cases: [Case]
}

// path-selection.md P1
@Suite struct BetterAddressTests {
    @Test func table() throws {
        let table: Table = try PathVectors.load("betteraddr")
        #expect(table.cases.count > 100)
        for (index, row) in table.cases.enumerated() {
            let a = row.a?.measured
            let isBetter = a?.isBetter(than: row.b?.measured) ?? false
            #expect(isBetter == row.a_is_better, "row \(index): \(row)")
        }
    }

    @Test func extremesDoNotTrap() {
        let address = SocketAddress("192.0.2.1:1")!
        let far = MeasuredAddress(address: address, latency: Interval(nanoseconds: .max))
        let near = MeasuredAddress(address: SocketAddress("192.0.2.2:1")!, latency: Interval(nanoseconds: 1))
        #expect(near.isBetter(than: far))
        #expect(!far.isBetter(than: near))
        #expect(far.isBetter(than: nil))
    }
}
