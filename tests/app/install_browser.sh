# What tests/app/test_browser.py needs: bash tests/app/install_browser.sh PIP
set -euo pipefail
"$1" install --quiet --constraint constraints.txt playwright
if command -v chromium > /dev/null; then
    exit 0
elif [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "chromium is not installed: install it, on Debian by 'apt-get install chromium' as root" >&2
    exit 2
fi
apt-get update --quiet=2
apt-get install --quiet=2 --yes --no-install-recommends chromium > /dev/null
