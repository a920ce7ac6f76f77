// SPDX-License-Identifier: Apache-2.0

extension WireGuard {
    /// Which peer owns which addresses: one path-compressed binary trie per family. Longest prefix wins; a
    /// prefix belongs to one peer.
    package struct AllowedIPs: Sendable {
        private var v4 = PrefixTrie()
        private var v6 = PrefixTrie()
        /// Changes with each change of the table, so that look-ups can be remembered.
        private(set) var version: UInt64 = 1

        /// No prefixes.
        package init() {}

        /// How many prefixes there are.
        package var count: Int { v4.count + v6.count }

        /// Slot of the peer that owns the address.
        @inline(__always)
        package func owner(of address: IPAddress) -> UInt32? {
            address.isV4
                ? v4.owner(of: UInt128(address.v4) << 96)
                : v6.owner(of: UInt128(address.high) << 64 | UInt128(address.low))
        }

        /// Gives a prefix to a peer; returns the peer that had it before.
        @discardableResult
        package mutating func insert(_ prefix: IPPrefix, owner: UInt32) -> UInt32? {
            version &+= 1
            let (key, bits) = Self.key(prefix)
            return prefix.address.isV4
                ? v4.insert(key, bits: bits, owner: owner) : v6.insert(key, bits: bits, owner: owner)
        }

        /// Takes a prefix away from whoever has it; returns who had it.
        @discardableResult
        package mutating func remove(_ prefix: IPPrefix) -> UInt32? {
            version &+= 1
            let (key, bits) = Self.key(prefix)
            return prefix.address.isV4 ? v4.remove(key, bits: bits) : v6.remove(key, bits: bits)
        }

        /// Left-aligned address bits.
        private static func key(_ prefix: IPPrefix) -> (UInt128, Int) {
            let address = prefix.address
            return address.isV4
                ? (UInt128(address.v4) << 96, prefix.bits)
                : (UInt128(address.high) << 64 | UInt128(address.low), prefix.bits)
        }
    }

    /// A binary trie over left-aligned keys with one-way paths left out: at most two nodes per prefix.
    private struct PrefixTrie: Sendable {
        private struct Node {
            var key: UInt128
            var bits: Int16
            var owner: UInt32
            var zero: Int32
            var one: Int32
        }

        private static let noOwner = UInt32.max
        private var nodes: [Node] = []
        private var root: Int32 = -1
        private var free: Int32 = -1
        private(set) var count = 0

        @inline(__always)
        private static func shares(_ a: UInt128, _ b: UInt128, _ bits: Int) -> Bool {
            (a ^ b).leadingZeroBitCount >= bits
        }

        /// Bit `place` counted from the left; 128 and beyond do not exist.
        @inline(__always)
        private static func bit(_ key: UInt128, _ place: Int) -> Bool {
            key &>> UInt128(truncatingIfNeeded: 127 - place) & 1 != 0
        }

        func owner(of key: UInt128) -> UInt32? {
            var best = Self.noOwner
            var place = root
            while place >= 0 {
                let node = nodes[Int(place)]
                guard Self.shares(key, node.key, Int(node.bits)) else { break }
                if node.owner != Self.noOwner { best = node.owner }
                guard node.bits < 128 else { break }
                place = Self.bit(key, Int(node.bits)) ? node.one : node.zero
            }
            return best == Self.noOwner ? nil : best
        }

        mutating func insert(_ key: UInt128, bits: Int, owner: UInt32) -> UInt32? {
            var parent: Int32 = -1
            var place = root
            while place >= 0 {
                let node = nodes[Int(place)]
                guard node.bits <= bits, Self.shares(key, node.key, Int(node.bits)) else { break }
                if Int(node.bits) == bits {
                    nodes[Int(place)].owner = owner
                    if node.owner == Self.noOwner { count += 1 }
                    return node.owner == Self.noOwner ? nil : node.owner
                }
                parent = place
                place = Self.bit(key, Int(node.bits)) ? node.one : node.zero
            }
            count += 1
            let leaf = make(key, bits: bits, owner: owner)
            guard place >= 0 else {
                link(leaf, below: parent)
                return nil
            }
            let other = nodes[Int(place)]
            let common = min((key ^ other.key).leadingZeroBitCount, bits, Int(other.bits))
            if common == bits {
                attach(place, to: leaf)
                link(leaf, below: parent)
            } else {
                let mask = common == 0 ? 0 : UInt128.max << UInt128(128 - common)
                let fork = make(key & mask, bits: common, owner: Self.noOwner)
                attach(place, to: fork)
                attach(leaf, to: fork)
                link(fork, below: parent)
            }
            return nil
        }

        mutating func remove(_ key: UInt128, bits: Int) -> UInt32? {
            var grandparent: Int32 = -1
            var parent: Int32 = -1
            var place = root
            while place >= 0, Int(nodes[Int(place)].bits) < bits {
                grandparent = parent
                parent = place
                place =
                    Self.bit(key, Int(nodes[Int(place)].bits))
                    ? nodes[Int(place)].one : nodes[Int(place)].zero
            }
            guard place >= 0, Int(nodes[Int(place)].bits) == bits, nodes[Int(place)].key == key,
                nodes[Int(place)].owner != Self.noOwner
            else { return nil }
            let owner = nodes[Int(place)].owner
            nodes[Int(place)].owner = Self.noOwner
            count -= 1
            splice(place, below: parent)
            if parent >= 0, nodes[Int(parent)].owner == Self.noOwner { splice(parent, below: grandparent) }
            return owner
        }

        /// Takes out a node without owner that does not fork.
        private mutating func splice(_ place: Int32, below parent: Int32) {
            let node = nodes[Int(place)]
            guard node.zero < 0 || node.one < 0 else { return }
            let child = max(node.zero, node.one)
            if parent < 0 {
                root = child
            } else if nodes[Int(parent)].zero == place {
                nodes[Int(parent)].zero = child
            } else {
                nodes[Int(parent)].one = child
            }
            nodes[Int(place)].zero = free
            free = place
        }

        private mutating func make(_ key: UInt128, bits: Int, owner: UInt32) -> Int32 {
            let node = Node(key: key, bits: Int16(bits), owner: owner, zero: -1, one: -1)
            guard free >= 0 else {
                nodes.append(node)
                return Int32(nodes.count - 1)
            }
            let place = free
            free = nodes[Int(place)].zero
            nodes[Int(place)] = node
            return place
        }

        private mutating func attach(_ child: Int32, to parent: Int32) {
            if Self.bit(nodes[Int(child)].key, Int(nodes[Int(parent)].bits)) {
                nodes[Int(parent)].one = child
            } else {
                nodes[Int(parent)].zero = child
            }
        }

        private mutating func link(_ child: Int32, below parent: Int32) {
            if parent < 0 { root = child } else { attach(child, to: parent) }
        }
    }
}
