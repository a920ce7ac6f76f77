// SPDX-License-Identifier: Apache-2.0

internal import CSodium

/// A pointer to a value that a `WireGuard.Device` owns, so that tables can name it and key pairs can change
/// places without being moved. Invariant: whoever frees it has removed it from every table before, in the
/// same call of the device; no such pointer leaves the device. Freed memory is overwritten: it held keys.
@safe
struct UnsafeOwned<Value: ~Copyable>: Equatable {
    private let pointer: UnsafeMutablePointer<Value>

    /// Allocates and takes the value.
    init(_ value: consuming Value) {
        unsafe pointer = .allocate(capacity: 1)
        unsafe pointer.initialize(to: value)
    }

    /// Ends the value's life.
    func free() {
        unsafe pointer.deinitialize(count: 1)
        unsafe sodium_memzero(pointer, MemoryLayout<Value>.size)
        unsafe pointer.deallocate()
    }

    /// The value in its place.
    var value: Value {
        @inline(__always)
        unsafeAddress { unsafe UnsafePointer(pointer) }
        @inline(__always)
        nonmutating unsafeMutableAddress { unsafe pointer }
    }

    @inline(__always)
    static func == (a: Self, b: Self) -> Bool { unsafe a.pointer == b.pointer }
}
