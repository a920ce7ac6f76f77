// SPDX-License-Identifier: Apache-2.0

internal import CryptoExtras
internal import FoundationEssentials
internal import Glibc

/// Hashes and checks passwords on a queue of its own: one takes tens of milliseconds of processor time.
///
///     $pbkdf2-sha256$65535$<salt>$<hash>      salt 16 bytes, hash 64 bytes, both unpadded standard base64
actor Passwords {
    private let executor = QueueExecutor(label: "passwords")
    nonisolated var unownedExecutor: UnownedSerialExecutor { executor.asUnownedSerialExecutor() }

    /// Upstream's number of rounds: existing hashes must verify, and ours must verify there.
    private static let rounds = 65_535
    /// Hashes made by others are honoured up to this many rounds.
    private static let maximumRounds = 10_000_000

    /// Compared against when there is no such user, so that the time taken does not tell.
    private lazy var dummy = hash("no user has this password")

    /// A new hash text with a random salt.
    func hash(_ password: String) -> String {
        let salt = Digest.random(16)
        let key = Self.derive(password, salt: salt, rounds: Self.rounds, count: 64)
        return
            "$pbkdf2-sha256$\(Self.rounds)$\(Base64.encode(salt, padded: false))$\(Base64.encode(key, padded: false))"
    }

    /// Whether `password` is the one of `hash`; nil stands for an unknown user and is never right.
    func verify(_ password: String, _ hash: String?) -> Bool {
        let parts = (hash ?? dummy).split(separator: "$", omittingEmptySubsequences: false)
        guard parts.count == 5, parts[0].isEmpty, parts[1] == "pbkdf2-sha256", let rounds = Int(parts[2]),
            (1...Self.maximumRounds).contains(rounds), let salt = Base64.decode(parts[3]),
            let wanted = Base64.decode(parts[4]), (16...512).contains(wanted.count)
        else { return false }
        let key = Self.derive(password, salt: salt, rounds: rounds, count: wanted.count)
        return Digest.areEqual(key, wanted) && hash != nil
    }

    private static func derive(_ password: String, salt: [UInt8], rounds: Int, count: Int) -> [UInt8] {
        let key = try? KDF.Insecure.PBKDF2.deriveKey(
            from: Array(password.utf8), salt: salt, using: .sha256, outputByteCount: count,
            unsafeUncheckedRounds: rounds)
        guard let key else { preconditionFailure("PBKDF2 refused lengths that were checked before") }
        return key.withUnsafeBytes { Array($0) }
    }
}

/// How hard a password is to guess, after the rule that upstream uses: 52 bits of length times alphabet, where
/// runs of one character and pieces of well-known sequences count at most twice.
enum PasswordStrength {
    /// Nil when the password is good enough, else what is wrong with it.
    static func complaint(_ password: String) -> String? {
        guard !password.isEmpty else { return "Password is required." }
        guard password.count <= 64 else { return "password must be no more than 64 characters" }
        guard entropy(password) >= 52 else {
            return
                "insecure password, try including more special characters, using different cases, or using a "
                + "longer password"
        }
        return nil
    }

    /// Bits.
    static func entropy(_ password: String) -> Double {
        let length = effectiveLength(Array(password))
        guard length > 0 else { return 0 }
        return Double(length) * log2(Double(alphabetSize(password)))
    }

    private static let alphabets = [
        "!@$&*", "_-., ", ##""#%'()+/:;<=>?[\]^{|}~`"##, "abcdefghijklmnopqrstuvwxyz",
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789",
    ]

    private static func alphabetSize(_ password: String) -> Int {
        let characters = Set(password)
        var size = 0
        for alphabet in alphabets where !characters.isDisjoint(with: alphabet) { size += alphabet.count }
        let known = Set(alphabets.joined())
        return size + characters.filter { !known.contains($0) }.count
    }

    private static let sequences: [[Character]] = {
        let forward = ["0123456789", "qwertyuiop", "asdfghjkl", "zxcvbnm", "abcdefghijklmnopqrstuvwxyz"]
        return forward.map { Array($0) } + forward.map { $0.reversed() }
    }()

    private static func effectiveLength(_ password: [Character]) -> Int {
        var kept: [Character] = []
        for character in password where !(kept.count >= 2 && kept.suffix(2).allSatisfy { $0 == character }) {
            kept.append(character)
        }
        var count = kept.count
        for sequence in sequences { count -= surplus(kept, in: sequence) }
        return max(count, 0)
    }

    /// Characters that continue a piece of `sequence` beyond its second character.
    private static func surplus(_ text: [Character], in sequence: [Character]) -> Int {
        var run = 1
        var total = 0
        for (previous, next) in zip(text, text.dropFirst()) {
            let follows = sequence.firstIndex(of: previous).map {
                $0 + 1 < sequence.count && sequence[$0 + 1] == next
            }
            run = follows == true ? run + 1 : 1
            if run > 2 { total += 1 }
        }
        return total
    }
}
