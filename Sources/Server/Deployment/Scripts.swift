// SPDX-License-Identifier: Apache-2.0

/// Shell scripts that people pipe into `sh`: they run with whatever a small machine has.
enum Scripts {
    /// Defines `fetch URL FILE`.
    private static let fetch = """
        fetch() {
            if command -v curl >/dev/null 2>&1; then curl -fsSL "$1" -o "$2"
            elif command -v wget >/dev/null 2>&1; then wget -q "$1" -O "$2"
            elif command -v busybox >/dev/null 2>&1; then busybox wget -q "$1" -O "$2"
            else echo "error: no download tool found, please install curl, wget or busybox wget" >&2; exit 127
            fi
        }
        """

    /// Fetches the program, and becomes the agent.
    static func agent(url: String, architecture: String) -> String {
        """
        #!/usr/bin/env sh
        set -eu
        waitonexit() { echo "=== The agent script ended with an error: exit code $?"; sleep 5; }
        trap waitonexit EXIT
        \(fetch)
        directory=$(mktemp -d -t coder.XXXXXX)
        program="$directory/coder"
        url="\(url)/bin/coder-linux-\(architecture)"
        until fetch "$url" "$program"; do
            echo "error: failed to download the coder agent from $url, trying again in 30 seconds"
            sleep 30
        done
        chmod +x "$program"
        trap - EXIT
        export CODER_AGENT_AUTH="token"
        export CODER_AGENT_URL="\(url)"
        exec "$program" agent

        """
    }

    /// Fetches the program of this server's version and puts it where programs are.
    static func install(url: String) -> String {
        """
        #!/usr/bin/env sh
        # Installs the command line program of \(url).
        set -eu
        usage() {
            cat <<'END'
        usage: curl -fsSL \(url)/install.sh | sh -s -- [--prefix DIR] [--binary-name NAME] [--dry-run]

          --prefix DIR        install to DIR/bin; otherwise /usr/local/bin for root, ~/.local/bin for others
          --binary-name NAME  name of the program; otherwise coder
          --dry-run           only say what would be done
        END
        }
        fail() { echo "error: $*" >&2; exit 1; }
        \(fetch)
        prefix="" name=coder dry=""
        while [ $# -gt 0 ]; do
            case "$1" in
            --prefix=*) prefix=${1#*=} ;;
            --prefix) shift; prefix=${1:?--prefix needs a directory} ;;
            --binary-name=*) name=${1#*=} ;;
            --binary-name) shift; name=${1:?--binary-name needs a name} ;;
            --dry-run) dry=1 ;;
            -h | --help) usage; exit 0 ;;
            *) usage >&2; fail "unknown option $1" ;;
            esac
            shift
        done
        [ "$(uname -s)" = Linux ] || fail "there is a program for Linux only"
        case "$(uname -m)" in
        x86_64) architecture=amd64 ;;
        aarch64 | arm64) architecture=arm64 ;;
        *) fail "there is no program for $(uname -m)" ;;
        esac
        if [ -n "$prefix" ]; then folder="$prefix/bin"
        elif [ "$(id -u)" -eq 0 ]; then folder=/usr/local/bin
        else folder="$HOME/.local/bin"
        fi
        source="\(url)/bin/coder-linux-$architecture"
        echo "$source -> $folder/$name"
        [ -z "$dry" ] || exit 0
        mkdir -p "$folder"
        new="$folder/.$name.new"
        trap 'rm -f "$new"' EXIT
        fetch "$source" "$new" || fail "cannot fetch $source"
        chmod 755 "$new"
        "$new" version >/dev/null || fail "what came from $source does not run here"
        # A rename: a program that runs keeps its file.
        mv -f "$new" "$folder/$name"
        echo "Installed. Now: $name login \(url)"
        case ":$PATH:" in
        *":$folder:"*) ;;
        *) echo "$folder is not on your PATH." ;;
        esac

        """
    }
}
