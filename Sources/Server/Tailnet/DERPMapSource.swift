// SPDX-License-Identifier: Apache-2.0

internal import FoundationEssentials
internal import Mesh
internal import RPC
internal import Synchronization

/// The DERP map in all the forms in which it is handed out: the map that the options make, and the regions of edge
/// relays, which come and go. Any task may use it.
final class DERPMapSource: Sendable {
    /// One state of the map.
    struct Published: Sendable {
        var map: DERPMap
        var json: JSON
        var message: TailnetDERPMap
        /// Grows with each change.
        var version: Int
    }

    /// What the options make.
    let base: DERPMap
    private let blocksDirect: Bool
    private let state: Mutex<Published>

    /// `blocksDirect`: nobody is told of STUN.
    init(_ map: DERPMap, blocksDirect: Bool) throws {
        base = map
        self.blocksDirect = blocksDirect
        state = Mutex(try Self.publish(map, version: 0))
    }

    /// The map as it is now.
    var current: Published { state.withLock { $0 } }

    /// Replaces the edge relays' regions. Those whose id or code is taken are left out. `coordinator.md` §8.2.
    func setEdgeRegions(_ regions: [DERPMap.Region]) throws {
        var map = base
        var codes = Set(base.regions.values.map(\.code))
        for region in regions where map.regions[region.id] == nil && codes.insert(region.code).inserted {
            map.regions[region.id] = region
        }
        if blocksDirect { map = map.withoutSTUN }
        let (old, version) = state.withLock { ($0.map, $0.version) }
        guard map != old else { return }
        let published = try Self.publish(map, version: version + 1)
        state.withLock { if $0.version == version { $0 = published } }
    }

    /// First id of edge relays: far above all others, a round number.
    var firstEdgeRegion: Int {
        ((base.regions.keys.max() ?? 0) + 2_000 + 9_999) / 10_000 * 10_000
    }

    /// Calls `send` with the map now and after each change, until it throws or the task is cancelled.
    func stream(_ send: (Published) async throws -> Void) async throws {
        var known: Int?
        while true {
            let published = current
            if published.version != known {
                known = published.version
                try await send(published)
            }
            try await Task.sleep(for: .seconds(2))
        }
    }

    private static func publish(_ map: DERPMap, version: Int) throws -> Published {
        Published(
            map: map, json: try JSON(parsing: Array(try JSONEncoder().encode(map))), message: map.message,
            version: version)
    }
}
