-- The tables of examples/shop.toml, and the account that lanecache logs in with.
--
--   mariadb < examples/shop.sql        (or: mysql < examples/shop.sql)

CREATE DATABASE shop;

CREATE TABLE shop.product (
    id INT PRIMARY KEY,
    name VARCHAR(40) NOT NULL,
    price DECIMAL(8,2) NOT NULL,
    stock INT NOT NULL
);

CREATE TABLE shop.customer (
    id INT PRIMARY KEY,
    email VARCHAR(100) NOT NULL UNIQUE,
    name VARCHAR(40) NOT NULL,
    city VARCHAR(40) NOT NULL
);

CREATE TABLE shop.orders (
    id BIGINT AUTO_INCREMENT PRIMARY KEY,
    customer_id INT NOT NULL,
    product_id INT NOT NULL,
    quantity INT NOT NULL,
    status ENUM('new', 'paid', 'shipped') NOT NULL DEFAULT 'new',
    placed_at DATETIME(3) NOT NULL
);

-- The least that is needed: to replicate, and to read the columns' names where the server does not
-- write them into the binlog (binlog_row_metadata=MINIMAL).
CREATE USER 'lanecache'@'%' IDENTIFIED BY 'change-me';
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'lanecache'@'%';
GRANT SELECT ON shop.* TO 'lanecache'@'%';
