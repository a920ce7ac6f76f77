// SPDX-License-Identifier: Apache-2.0

internal import CLinux

/// The system's log (`syslog(3)`): for programs in the background, whose standard error leads nowhere.
public enum SystemLog {
    /// One line, under the name that the program was called by. Lost when nobody keeps a log.
    public static func write(_ text: String, isError: Bool) { clinux_log(text, isError ? 1 : 0) }
}
