// SPDX-License-Identifier: Apache-2.0

/// How the packets of a burst lie in the caller's memory, so that each can be sealed where it stands:
///
///     | head | packet | padding | tail | head | packet | padding | tail | ...
///
/// Packets of the same length are the same distance apart, which is what a segmenting send (`UDP_SEGMENT`) wants.
package struct BurstLayout: Hashable, Sendable {
    /// Bytes before each packet.
    package var head: Int
    /// Bytes behind each padded packet.
    package var tail: Int
    /// Packets are padded to a multiple of this, a power of two,
    package var alignment: Int
    /// but never beyond this length.
    package var paddedLimit: Int

    /// From its parts.
    package init(head: Int, tail: Int, alignment: Int, paddedLimit: Int) {
        precondition(head >= 0 && tail >= 0 && alignment > 0 && alignment & (alignment - 1) == 0)
        self.head = head
        self.tail = tail
        self.alignment = alignment
        self.paddedLimit = paddedLimit
    }

    /// Nothing around the packets.
    package static var plain: BurstLayout {
        BurstLayout(head: 0, tail: 0, alignment: 1, paddedLimit: .max)
    }

    /// Distance from one packet of `length` bytes to the next.
    @inline(__always) package func stride(_ length: Int) -> Int {
        let rounded = (length + alignment - 1) & ~(alignment - 1)
        return head + max(length, min(rounded, paddedLimit)) + tail
    }
}

/// Packets of one connection (or one packet of any other kind), written by `Stack.nextBurst`.
package struct OutgoingBurst: Hashable, Sendable {
    /// How many packets there are, at least one.
    package var count: Int
    /// Length of each but the last.
    package var length: Int
    /// Length of the last; not more than `length`.
    package var lastLength: Int
    package var destination: IPAddress

    /// From its parts.
    package init(count: Int, length: Int, lastLength: Int, destination: IPAddress) {
        self.count = count
        self.length = length
        self.lastLength = lastLength
        self.destination = destination
    }

    /// Length of packet `index`.
    @inline(__always) package func length(of index: Int) -> Int { index == count - 1 ? lastLength : length }

    /// Bytes from the start of the first packet's head to the end of the last one's tail.
    package func extent(_ layout: BurstLayout) -> Int {
        (count - 1) * layout.stride(length) + layout.stride(lastLength)
    }
}
