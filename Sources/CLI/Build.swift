// SPDX-License-Identifier: Apache-2.0

/// What is known about this build.
public enum Build {
    /// Compatible with the original's release of this number.
    public static let version = "v2.30.0+swift"
}
