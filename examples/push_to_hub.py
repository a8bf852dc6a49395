"""Push a finished run to the Hub: python examples/push_to_hub.py FOLDER REPO_ID"""

import argparse

from ddim_hf.command_line import run
from ddim_hf.hub import push_to_hub


def main():
    parser = argparse.ArgumentParser(description="Push a finished run to the Hugging Face Hub, in one commit.")
    parser.add_argument("folder", help="the run: model_index.json, unet/, scheduler/")
    parser.add_argument("repo_id", help="user/name; made where it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="where the repo is made by this push")
    parser.add_argument("--license", help="of the weights, such as mit (default: what the README says, or none)")
    parser.add_argument("--token", help="with write access; default: that of `hf auth login` or HF_TOKEN")
    parser.add_argument("--commit_message")
    parser.add_argument("--revision", help="the branch, made where it does not exist (default: main)")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request in place of committing")
    print(f"pushed to {push_to_hub(**vars(parser.parse_args()))}")


if __name__ == "__main__":
    run(main)
