"""`python -m msn_deploy` is `msn-deploy`."""

from msn_deploy.cli.app import run

if __name__ == "__main__":
    run()
